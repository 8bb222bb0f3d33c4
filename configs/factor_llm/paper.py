"""FactorLLM (arXiv:2408.11855, the number is unverified): what the released training script says.

None is what was not found.
"""

BASE = dict(name='TinyLlama-1.1B', d_model=2048, d_ff=5632)
CHUNKS, K = 4, 2
PRIOR, BALANCE = (0.05, 'sum'), (0.01, 'sum')      # coefficients; losses are summed over layers
OPTIM = dict(name='adam', rate=4e-5, warmup_steps=500, steps=10_000, schedule='cosine', batch_size=None)
# Share of the source's performance, and how much faster inference is.
REPORTED = dict(performance=0.85, faster=0.30)
