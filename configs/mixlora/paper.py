"""MixLoRA (2024, arXiv:2404.15159): settings of the paper and of the released code. None is not at hand."""

EXPERTS, K, P = 8, 2, 0.8                # P of the dynamic variant
RANK, ALPHA, DROPOUT = 16, 32.0, 0.05    # beside all seven matrices of a block
BALANCE, JITTER = 0.001, 0.0             # the released code's defaults
OPTIM = dict(name='adamw', rate=2e-4, schedule='constant', batch=16, epochs=2, length=512)
BASES = None
# Points of accuracy over LoRA in multi-task learning; memory and latency saved by serving several adapters.
REPORTED = dict(accuracy=0.09, memory=0.40, latency=0.30)
