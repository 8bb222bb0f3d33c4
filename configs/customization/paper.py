"""Low-cost customisation (Zhang, Davoodi and Hu, 2018, arXiv:1811.00056): what is known of the paper.

Verified is the abstract: EMNIST characters, LeNet-5 as generic network, ten users, a local expert and a gate
that cost about 2.5 % of it. There is no code. None is what is not given.
"""

PAPER = dict(generic='LeNet-5', users=10, cost=0.025, local=None, gate=None, num_user=None, rate=None)

# This project's claim, measured with scikit-learn on its digits, 5 seeds: accuracy on plain and on turned
# digits, with GE of 64 units, LE of 16, GN of 8 (mean, spread).
MEASURED = dict(generic=((0.973, None), (0.188, 0.041)), local=(None, (0.911, 0.020)),
                hard=((0.970, 0.003), (0.910, 0.019)), soft=((0.971, None), (0.911, None)),
                fine_tuned=((0.950, 0.009), (0.362, 0.041)))
SIZES = dict(generic=(64,), local=(16,), gate=(8,))
