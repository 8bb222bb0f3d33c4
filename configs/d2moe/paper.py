"""D2MoE (2025, arXiv:2504.15299): what we know of the paper; the surgery is stmoe/surgery/d2moe.py.

None is what we do not know.
"""

BITS = None                          # the shortest and the longest codes
GROUP = None                         # weights that have a scale in common
# Throughput, and less peak memory, at the accuracy of 8-bit integers.
REPORTED = dict(throughput=1.39, peak_memory=-0.53)
