"""MPOE (Gao et al., 2022, arXiv:2203.01104): what the abstract, the released code and its scripts say.

None is what is not at hand; the paper's tables are not.
"""

# Factors of the two widths of a feed-forward layer (compress_tools): 3072 and 768, 4096 and 1024.
FACTORS = {
    768: ((3, 4, 4, 4, 4), (4, 4, 8, 6, 4)),
    1024: ((4, 4, 4, 4, 4), (4, 4, 8, 8, 4)),
}
# Bonds and sizes of the five tensors of a matrix 768 x 3072; the third is shared by all experts.
BONDS = (1, 12, 192, 384, 16, 1)
TENSORS = (144, 36_864, 2_359_296, 147_456, 256)

EXPERTS = (8, 12, 16)                # T5-base and GPT-2 of the scripts; 3 of T5-large
TRUNCATED = None                     # bonds are cut to 30000 in the scripts: not at all
MASKED = None                        # p_b, the probability that the central tensor's gradient is masked
BALANCE = dict(t5=0.0, gpt2=0.01)    # the code's default

# The released script of GLUE fine-tuning; others tune the rate. Label smoothing 0.1.
GLUE = dict(rate=2e-6, batch=32, length=128, label_smoothing=0.1, warmup=320)
# Top-2 of GPT-2: policy of the second expert, capacities in training and evaluation, least capacity.
TOP2 = dict(second_policy='random', second_threshold=0.2, capacity_factor=(1.25, 2.0), min_capacity=4)

# "27.2x reduction in total parameters" against Switch Transformers, at better quality (abstract).
REPORTED = dict(reduction=27.2)
