"""DeepSeek-V4's routing (2026), of the released code; its base is DeepSeek-V3, arXiv:2412.19437.

No report is at hand: None is not known.
"""

# k of num_experts; scale: factor of the gates (1.5 is the default of the code). Widths are not at hand.
SIZES = dict(flash=dict(experts=256, k=6, scale=1.5, params=None),
             pro=dict(experts=384, k=6, scale=2.5, params=None))
HASHED = 3                         # sparse layers, the first ones, whose experts are those of the token's id
LIMIT = 10.0                       # L of SwiGLU, in routed and shared experts
BIAS_RATE = None                   # V3's is taken
TABLE = None                       # the recipe of the tables is not published
OPTIM = REPORTED = None
