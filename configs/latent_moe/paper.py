"""LatentMoE (Nemotron 3, 2025, arXiv:2512.20856): what section 2.2 says, as far as it is at hand.

None is what is not at hand. The figures of the comparison come from a second source.
"""

# A standard layer and a latent one of equal expert parameters: E * latent is the same, k * latent nearly. The
# models have 73B parameters, 8B active. Layers, heads and widths of experts are not at hand.
SIZES = dict(
    standard=dict(d_model=4096, latent=None, experts=128, k=6),
    latent=dict(d_model=4096, latent=1024, experts=512, k=22),
)
LAYERS = HEADS = D_FF = SHARED_D_FF = VOCAB = OPTIM = TOKENS = None

# Experts are not gated; sigmoids, a selection bias, normalised gates times the scale, as in DeepSeek-V3.
ACTIVATION, ROUTE_SCALE = 'relu2', 2.5
BIAS_RATE = BALANCE = GROUPS = None

REPORTED = dict(mmlu_pro=dict(standard=48.30, latent=52.87))         # section 2.2, from a second source
