"""BAM (Zhang et al., 2024, arXiv:2408.08274): what the paper says.

Mixtures of attention and feed-forward experts from dense models that were trained apart, and the baseline BTX
(Branch-Train-Mix), which averages attention. None is what is not at hand.
"""

# Dense seeds: parallel blocks, one norm, SwiGLU, V = 256k. The paper's F counts gate and up matrix together:
# only with half of it for each do the dimensions make 590M and 2B.
SIZES = {
    '590m': dict(d_model=1024, d_ff=4096 // 2, layers=6, num_heads=8, num_kv_heads=8, tied=False,
                 params=590e6),
    '2b': dict(d_model=2304, d_ff=18432 // 2, layers=18, num_heads=18, num_kv_heads=6, tied=True,
               params=2e9),
}
VOCAB = 256_000
# The pre-training of the seeds: tokens, tokens of a batch, peak rate, warm-up, last rate over the peak.
SEED = {
    '590m': dict(tokens=400e9, batch=1e6, peak=None, warmup=None, end=None),
    '2b': dict(tokens=750e9, batch=4e6, peak=1e-2, warmup=2000, end=0.03),
}
# Of 590m; a tenth of each domain's tokens are Common Crawl.
BRANCH = dict(domains=('code', 'law', 'math'), tokens=100e9, rate=0.5)             # of the seed's peak
# The mixture: the seed and its three branches, a quarter of the data from each domain; AdamW, fresh.
EXPERTS, FFN_K, WEIGHT_DECAY = 4, 1, 0.1
MIX = {
    '590m': dict(peak=1.2e-4, warmup=1500, end=0.1, tokens=None, tpu_core_days=25),
    '2b': dict(peak=1e-4, warmup=1000, end=0.1, tokens=None, tpu_core_days=305),
}
BALANCE = Z = None                 # alpha and beta of the feed-forward routers; attention's have no loss
LENGTH = None                      # positions of a row

# Average perplexity over four domains, with as much data as BTX and with as much compute.
REPORTED = {
    '590m': dict(seed=13.91, btx=10.72, kv=dict(data=9.70, compute=10.00),
                 shared_kv=dict(data=10.32, compute=10.46)),
    '2b': dict(seed=3.33, btx=3.27, kv=dict(data=3.19, compute=3.21),
               shared_kv=dict(data=3.22, compute=3.24)),
}
# Benchmark average of 2b; the gates of attention at equal compute (590m); seconds for 256 + 16 tokens on TPU.
BENCHMARKS = dict(btx=32.71, kv=dict(data=34.02, compute=33.50))
GATES = dict(btx=10.72, soft=10.47, top2=10.72, top1=10.81)
LATENCY = dict(btx=4.81, kv=6.17, shared_kv=5.96)

# Name, printed count, unit of its last digit.
PARAMETERS = [('bam/sizes:phase=seed', SIZES['590m']['params'], 1e7),
              ('bam/sizes:phase=seed,size=2b', SIZES['2b']['params'], 1e8)]
