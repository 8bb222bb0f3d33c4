"""Sparse upcycling and its relatives: what the papers say.

Sparse Upcycling (Komatsuzaki et al., 2022, arXiv:2212.05055); Upcycling Large Language Models into Mixture of
Experts (2024, arXiv:2410.07524); Skywork-MoE (2024, arXiv:2406.06563). BTX and BAM are in configs/bam. None
stands for a number that no paper gives.
"""

# arXiv:2212.05055. The surgery: layers, experts, routing.
RECIPE = dict(
    experts=32,
    capacity_factor=2.0,           # C: expert choice takes C n / E tokens per expert of a group of n
    encoder='expert_choice', decoder='top-2',   # expert choice needs the whole group: not in a decoder
    layers_t5='every other one, from the second',
    layers_vit='the last half',    # placement (unverified)
    normalize=dict(t5=False, vit=True),         # weights of a token over their sum; it hurts language
    optimizer=dict(t5='fresh', vit='reuse'),    # slots: no benefit in language
    noise=0.0,                     # little does no harm, much does
    router_init=0.02,              # standard deviation (unverified)
    dropout=0.0,
)
OPTIM = dict(
    optimizer='adafactor', schedule='inverse square root, continued from the dense step',
    batch_size=None, lengths=None,               # as in the dense run; T5's are not given
    dense_steps=dict(base=None, large=1_000_000, xl=1_000_000),   # base: their own; T5 1.1
    # Extra training of the printed SuperGLUE results, in parts of the dense training; about 0.5 elsewhere.
    extra=dict(base=0.55, large=0.46, xl=None),
    epochs_vit=dict(dense=14, extra=7),          # an example
    balance=None,                  # of the decoder's routers
    start_points=(200_000, 1_200_000), start_point_extra=200_000,     # ablation: gain roughly constant
)

# SuperGLUE of base and large over dense continuation: points. ViT-B/16 10-shot +1 %: extra training in parts.
REPORTED = dict(
    superglue_gain=(1.5, 2.0),
    vit_b16_one_percent=dict(dense=0.58, upcycled=0.13),
    # Training from scratch until a sparse model catches up with upcycled models; dense training = 1.
    scratch_catches_up=(1.0, 1.2),
    best_extra=(0.1, 0.6),
)

# arXiv:2410.07524: virtual groups (see surgery/upcycle.py); here MMLU after 1T tokens more, Nemotron-4 15B
# with 8 experts, top-2, against dense continuation. Widths, rates and batches are not at hand.
FINE_GRAINED = dict(mmlu=dict(dense=65.3, upcycled=67.6), experts=8, k=2, tokens=1e12)

# Skywork-MoE: 16 experts on a 13B model, 146B parameters. Its rule of thumb (unverified): upcycle when the
# budget of the sparse model is well below the dense model's; from scratch when it is twice that or more.
SKYWORK = dict(experts=16, parameters=146e9, dense=13e9)
