"""Changes of the rates of rotary positions for longer texts, a file each.

A scaling is called with (rate f32[P/2], base, length f32[B,1,1,1]) and returns (rates, size), of all rows
alike or [B,1,1,.]. `length` is the number of positions that a row reaches, B = 1 where all reach as many.
`size` multiplies cos and sin.
"""
