"""Chain of Experts (Wang et al., 2025, arXiv:2506.18945): the released configuration and reported losses.

CoE(C, K, N) has C iterations, K experts of each and N experts; K and N count the one shared expert.
"""

# The released model is like DeepSeek-V2, with latent attention: rank of keys and values, width of a head that
# positions do not turn, that they turn, of values.
SIZE = dict(d_model=1024, num_heads=8, layers=4, d_ff=704, experts=64, shared=1, vocab_size=102_400,
            kv_rank=512, nope_dim=128, head_dim=64, value_dim=128, yarn=40,
            params=544e6,              # as printed: about what the routed experts alone have
            computed=780.9e6)
ITERATIONS, PER_TURN = 2, 4            # 3 routed experts and the shared one
BALANCE = 0.001                        # alpha, of every layer and iteration; over each sequence
OPTIM = dict(b1=0.9, b2=0.95, weight_decay=0.01, clip=1.0, peak=3e-4, warmup=0.1)
STEPS, LENGTH = 1000, 512
BATCH = 64                             # 32k tokens; the released base.yaml has 256 rows
INIT_STD = 0.02                        # of experts; gates are uniform over +-1 / sqrt(D)

# Validation loss after 1000 steps; None is what is only described.
REPORTED = {
    (1, 8, 64): 1.20,                  # the sparse baseline: one iteration
    (2, 4, 64): 1.12,
    (2, 4, 48): 1.20,                  # equal loss with 17.6 % less memory
    (2, 8, 64): None,                  # below (1, 16, 64) and (1, 24, 64); as 8 layers of the baseline
}
# Residuals, a reading note (unverified): inner 1.12, only outer 1.21, from the first input each time 1.18.
RESIDUALS = dict(previous=1.12, none=1.21, initial=1.18)

COMPUTED = (('chain_of_experts/sizes', SIZE['params'], SIZE['computed'], 0.5),)
