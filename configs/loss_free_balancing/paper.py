"""Auxiliary-loss-free load balancing (Wang et al., 2024, arXiv:2408.15664): what the paper says.

None is what it does not give.
"""

# DeepSeekMoE-style models with a sigmoid gate; layers and widths are not given.
SIZES = {
    '1b': dict(d_model=None, layers=None, routed=None, d_ff=None, params=1e9, tokens=100e9, length=2048,
               batch_size=1152),                   # batch (unverified)
    '3b': dict(d_model=None, layers=None, routed=None, d_ff=None, params=3e9, tokens=200e9, length=2048,
               batch_size=1728),                   # batch (unverified)
}
RATE = 1e-3                                        # u; not tuned again at 3B
BALANCE = 1e-3                                     # alpha of the baseline with an auxiliary loss
PEAK = None                                        # learning rate

# Validation perplexity and MaxVio over the validation set.
REPORTED = {
    ('1b', 'aux'): (9.56, 0.72), ('1b', 'loss_free'): (9.50, 0.04),
    ('3b', 'aux'): (7.97, 0.52), ('3b', 'loss_free'): (7.92, 0.04),
}
# 1B, by update rule and rate; u = 1e-4 balances too slowly early, 1e-2 oscillates late and hurts.
# Multiplying by the bias is slightly worse than adding it; by how much is not at hand.
ABLATION = {('sign', 1e-3): (9.50, 0.044), ('magnitude', 1e-2): (9.53, 0.028),
            ('magnitude', 1e-3): (9.51, 0.036), ('magnitude', 1e-4): (9.51, 0.040)}
