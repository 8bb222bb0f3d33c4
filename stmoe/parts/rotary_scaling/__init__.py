"""Changes of the rates of rotary positions for longer texts, a file each.

A scaling is called with (rate f32[P/2], base, length f32[]) and returns (rates f32[P/2], size). `length` is
the number of positions that the batch reaches; `size` multiplies cos and sin.
"""
