"""MomentumSMoE (Teo and Nguyen, 2024, arXiv:2410.14574): what the released scripts and the paper say.

Scripts: rachtsy/MomentumSMoE, the WikiText-103 part only; it has neither the vision models nor the robust
method. None is what neither gives. (unverified) is recalled from the paper, not checked against it.
"""

# Released scripts. Widths D = F of an expert (and of GLaM's dense layers); M positions a row, W = span;
# steps = niter x 1000; batch over all devices, there in two microbatches.
SIZES = dict(
    small=dict(d_model=128, d_ff=128, layers=3, length=256, span=256, dropout=0.7, batch=96, steps=60_000,
               peak=7e-4, warmup=3000),
    medium=dict(d_model=352, d_ff=352, layers=6, length=512, span=1024, dropout=0.1, batch=48, steps=80_000,
                peak=7e-4, warmup=4000),
    large=dict(d_model=512, d_ff=512, layers=12, length=1024, span=2048, dropout=0.1, batch=24, steps=80_000,
               peak=7e-4, warmup=5000),
    # Layers: units of a sparse and a dense block, so 12 blocks. The rate is a tenth of the others'.
    glam=dict(d_model=352, d_ff=352, layers=6, length=512, span=2048, dropout=0.1, batch=48, steps=120_000,
              peak=7e-5, warmup=4000),
)
HEADS, EXPERTS, K = 8, 16, 2                   # everywhere

# mu and gamma2 of heavy ball. The scripts' gamma1 = 0.8 has no effect on it.
MOMENTUM = dict(mu=0.7, gamma=1.0)
# There is no script for small and large.
ADAM = dict(
    small=None,
    medium=dict(gamma1=1.0, beta1=0.9, beta2=0.999, mu=0.7, gamma2=1.0),
    large=None,
    glam=dict(gamma1=0.8, beta1=0.9, beta2=0.999, mu=0.7, gamma2=1.0),
)
ROBUST = dict(smoothness=None, convexity=None, rho=None)   # L, c and rho are not known

# Adam without decay or clipping; linear warm-up, whose first step uses peak / warmup, then constant.
OPTIM = dict(name='adamw', b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
# The scripts pass 0.01, but the gate never computes the loss: the published models have none.
BALANCE = 0.0

# Embeddings and relative positions N(0, 1); linear maps U(-1, 1) / sqrt(fan_in), variance 1 / (3 fan_in).
# Experts: Kaiming's rule on tensors [E, out, in] took out * in for the fan, U(-1, 1) / sqrt(out * in).
LINEAR_SCALE = 1 / 3


def expert_scale(width):
  """Returns the variance scale of the released experts, s / fan_in = 1 / (3 fan_in width), for D = F."""
  return 1 / (3 * width)


# WikiText-103, words: perplexity on (valid, test, attacked valid, attacked test). Attacked: random words
# swapped for a generic token. All (unverified).
REPORTED = {
    ('medium', 'smoe'): (33.76, 35.55, 42.24, 44.19),
    ('medium', 'momentum'): (32.29, 33.46, 40.94, 42.33),
    ('medium', 'adam'): (31.59, 33.25, 39.27, 41.11),
    ('glam', 'smoe'): (36.37, 37.71, 45.83, 47.61),
    ('glam', 'momentum'): (33.87, 35.29, 42.15, 43.64),
    ('glam', 'adam'): (32.99, 34.32, 41.09, 42.81),
}
# The gain grows with depth and shrinks or disappears at size small, where momentum is recalled to be slightly
# worse than SMoE (unverified). Also claimed: faster convergence, more even load, a smaller spectral radius of
# the map of a layer (unverified).

# ImageNet-1K: momentum in the sparse layers of a small V-MoE and of a Soft-MoE, evaluated on ImageNet-A, -O,
# -R and -C. Hyper-parameters are not known.
VISION = None
