"""X-MoE (Chi et al., 2022, arXiv:2204.09179) and the perturbed cosine router (2024, arXiv:2405.14131).

What four public codes do, where they differ; the papers themselves are recalled (unverified). None is what is
not at hand.
"""

# microsoft/torchscale: lengths of tokens stay and there is no temperature.
TORCHSCALE = dict(width=16, normalize_tokens=False, temperature=1.0, fixed_temperature=True)
# Fsoft-AIC/LibMoE: experts have length 1.5, so that cosines reach 1.5; a softmax over chosen probabilities.
LIBMOE = dict(embedding_norm=1.5, temperature=0.3, fixed_temperature=True, double_softmax=True)
# microsoft/Tutel: a biased projection, a learned temperature.
TUTEL = dict(width=256, use_bias=True, temperature=0.5)
# Fsoft-AIC/CompeteSMoE, with LibMoE's other numbers.
PERTURBED = dict(tau=0.1, tau_experts=0.1)

SIZES = OPTIM = REPORTED = None    # of arXiv:2204.09179
# LibMoE finds the most even weights and the smallest margin of its routers: two softmaxes have them built in.
# Of k = 3 the entropy of the weights is 0.975 nats at least (ln 3 = 1.099) and the margin 0.364 at most.
DOUBLE_SOFTMAX = {3: dict(entropy=0.975, margin=0.364), 8: dict(entropy=0.959, margin=0.177)}
