"""Quantile balancing (kexue.fm 11619; Kimi K3, report section 2.3.3; Megatron-LM, torchtitan): what they say.

Its authors have no paper on arXiv that is at hand. It is compared with loss-free balancing, arXiv:2408.15664.
None is what the sources do not give.
"""

EMA = 0.0
BINS = 1000                        # of the histogram in torchtitan and Kimi K3; Megatron sorts
SIZES = OPTIM = REPORTED = None

# Largest load over the mean, minus 1, after each of the first steps; not of the authors: of logits N(0, 1)
# with offsets of experts of deviation 1.5, 4,096 fresh tokens a step, 64 experts, k = 8.
MEASURED = dict(
    quantile=(6.06, 0.25, 0.17, 0.15),
    sign={(1e-3, 300): 5.69, (1e-3, 2000): 2.14, (1e-2, 300): 0.30, (1e-1, 100): 0.25})   # (rate, step)
