"""ProMoE, Routing Matters in MoE (2025, arXiv:2510.24711): what the released code says.

Released: ali-vilab/ProMoE, commit 5915b31. None stands for a number that is not at hand. No parameter counts
are at hand; sizes are DiT's (configs/dit.py).
"""

# Every second block is sparse; experts, besides the one of images without a class and the shared one.
ROUTING = dict(experts=12, k=1, gate='identity', temperature=0.07, contrastive=1.0)
WIDTH = {'s': 768, 'b': 1536, 'l': 2048, 'xl': 2304}                 # of an expert, and of the shared one
OPTIM = dict(steps=500_000, batch_size=256, rate=1e-4, weight_decay=0.0, warmup_steps=0, clip=0.5,
             average=0.9999, devices=8)                              # devices: (unverified)
SAMPLING = dict(steps=250, guidance=(1.0, 1.5))

# README of the released code, 500k steps: FID and IS without guidance, FID and IS at 1.5.
REPORTED = {
    's': None,
    'b': (24.44, 60.38, 6.39, 154.21),
    'l': (11.61, 100.82, 2.79, 244.21),
    'xl': (9.44, 114.94, 2.59, 265.62),
}
