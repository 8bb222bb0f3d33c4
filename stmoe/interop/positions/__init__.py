"""Types of rotary positions, a file each, called like the `rope_type` in a config.json.

A file has FIELDS, the fields of the type besides base and type, and `configure(hf, given)`. That function
returns (section `model.rotary_scaling` or None, factor of the attention's logits) of the fields `given`.
`describe(scaling, logits)` is the way back: (fields of the type, other fields of config.json).
"""
