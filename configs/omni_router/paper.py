"""Omni-router (Gu et al., 2025, arXiv:2507.05724): what its abstract, model cards and one public port say.

The sizes are those of the port's presets, approximate and unverified. The printed counts are of models with a
speech front-end; the stacks alone do not make them. None is what no source gives.
"""

# d_model, layers, heads, width of the feed-forward layer; experts of the layers, from the first one up.
SIZES = dict(
    base=dict(d_model=512, layers=12, heads=8, d_ff=2048, experts=(8,)),
    moe=dict(d_model=768, layers=16, heads=12, d_ff=3072, experts=(8,)),       # 2, 4 or 8 experts
    streaming=dict(d_model=1024, layers=24, heads=16, d_ff=4096, experts=(2, 4, 8, 16)))  # 6 layers of each
PRINTED = dict(base='8x84M', streaming='0.6B')
NOISE_STD = 0.1                    # the port's; additive
BALANCE = 0.01                     # the port's; of every layer
OPTIM = None                       # optimizer, rate, schedule and batch

# Word error rates, trained on Libriheavy (model cards): dev-clean, dev-other, test-clean, test-other.
REPORTED = dict(dense=(2.1, 6.7, 2.3, 6.2), switch=(1.9, 6.1, 2.2, 5.8), omni=(1.8, 5.4, 2.0, 5.2))
# Abstract: relative word error rate against a dense model and against Switch.
RELATIVE = dict(dense=-0.112, switch=-0.082)
