"""Global-batch load balancing (arXiv:2501.11873): what users' threads say of it.

The paper's own tables are not at hand; None is what the threads do not give.
"""

SIZES = OPTIM = None
COEFFICIENT = None
# With the global instead of the microbatch's scope (NVIDIA/Megatron-LM issue 1498): perplexity, points of
# benchmarks, both about; experts of domains become visible.
REPORTED = dict(perplexity=-0.1, benchmarks=2.0)
