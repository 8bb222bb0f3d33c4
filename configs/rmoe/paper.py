"""RMoE (Qiu et al., 2024, arXiv:2408.06793): what a reading note of the paper and its code say.

All numbers but the code's defaults are unverified: they are of a published note, not of the paper itself.
None is what neither gives.
"""

# d_ff: width of an expert; length, vocabulary, batch, rate and steps are not given.
SIZES = dict(
    small=dict(d_model=352, layers=8, experts=16, k=2, d_ff=None, heads=None, params=36e6),  # of a reviewer
    large=dict(d_model=1280, layers=24, experts=16, k=4, d_ff=None, heads=None, params=0.91e9))
WIDTH = 128                        # P; 256 and 512 are worse at scale. The code's default is 256
BALANCE = 0.01                     # the code's default is 0.001
ADDED = 3.5e6                      # parameters that the routers of the large model add, as quoted

# Bits per character of Enwiki8: as it is, without passing the state on, without its gradient.
REPORTED = dict(on=1.141, off=1.150, stopped=1.159)
OPTIM = None                       # optimizer, rate, schedule, batch and tokens

PARAMETERS = (('rmoe/enwik8', SIZES['small']['params'], 1e6), ('rmoe/sizes', SIZES['large']['params'], 1e7))
