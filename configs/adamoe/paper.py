"""AdaMoE (Zeng et al., 2024, arXiv:2406.13233): what we know of the paper and of its two releases.

Releases: github.com/CengZihao/AdaMoE, exp_2 (Mixtral) and exp_1 (LoRA experts). None is what we do not know.
"""

# Mixtral-8x7B with null experts; its own k is 2, that with nulls 3 or 4. Widths are Mixtral's; the count is
# the usual one of it (unverified), to which nulls add 0.002B.
SIZE = dict(d_model=4096, num_heads=32, num_kv_heads=8, head_dim=128, layers=32, d_ff=14336, vocab_size=32000,
            experts=8, null=16, k=4, params=46.7e9)
# exp_1: experts are low-rank parts over a dense model of 32 layers, whose widths it does not say.
LORA = dict(experts=4, layers=32, balance=0.001, null=None, k=None, rank=None)
BALANCE = None                       # coefficient of exp_2
OPTIM = None                         # fine-tuning with LoRA on sets of reasoning

# Mixtral on ARC-Challenge: FLOPs -14.55 %, accuracy +1.69 points, real experts of a token 2.0 -> 1.67.
REPORTED = dict(flops=-14.55, accuracy=1.69, real=(2.0, 1.67))

PARAMETERS = (('adamoe/mixtral', SIZE['params'], 1e8),)
