"""DynMoLE (2025, arXiv:2504.00661): settings of the released template. None is not at hand."""

EXPERTS, KEEP, P = 6, 2, 0.75
THRESHOLD, Q, KIND = 0.9, 1.1, 'tsallis'
RANK, ALPHA, DROPOUT = 24, 48.0, 0.05    # beside gate, up and down
ENTROPY, BALANCE = 0.01, 0.001
OPTIM = dict(name='adamw', rate=2e-4, schedule='constant', batch=16, epochs=2)
BASES = None
# Share of accuracy over LoRA and over MoLA, from the abstract at second hand.
REPORTED = dict(lora=0.096, mola=0.023)
