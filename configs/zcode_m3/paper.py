"""Z-code M3 (Kim et al., 2021, arXiv:2109.10465): what is known of it.

The paper's text and code were not at hand. Verified are the abstract, and random token selection and the gate
in DeepSpeed's code. What is marked (u) is unverified. None is what is not known.
"""

LANGUAGES = 50
PARAMS = 10e9
# (u) An encoder-decoder, sparse in every second layer. The dense model of this size has about 0.7B.
SIZE = dict(encoder=24, decoder=12, d_model=1024, d_ff=4096, num_heads=16, head_dim=64, experts=64,
            dense_params=0.7e9, vocab_size=128_000)

# Top-1, random token selection; factors (u) of training and evaluation, coefficient of the balance loss.
GATE = dict(k=1, capacity_factor=(1.0, 2.0), min_capacity=4, balance=0.01)
# (u) Adam with the inverse square root; the peak, batches and steps are not known.
OPTIM = dict(b1=0.9, b2=0.98, warmup_steps=5000, peak=None, batch_size=None, steps=None, label_smoothing=0.1,
             dropout=0.1)
# (u) Pairs are sampled by size to the power of 1 / 5. Denoising as in BART and mBART: 35 % in spans of 3.5.
MIXTURE = dict(temperature=5.0, noise_density=0.35, mean_span_length=3.5)

# Directions alone are known: random token selection lowers the loss at equal steps, aggregation of experts
# needs fewer samples, pruning keeps most of the BLEU, translation with denoising beats translation alone.
REPORTED = None

# Name, printed count, unit of its last digit. Where the sizes (u) make another count: name, printed, ours, by
# how much the print is off at most.
PARAMETERS = [('zcode_m3/sizes', PARAMS, 1e9)]
COMPUTED = [('zcode_m3/sizes:experts=0', SIZE['dense_params'], 0.634e9, 0.1)]
