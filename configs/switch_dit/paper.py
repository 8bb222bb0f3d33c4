"""Switch Diffusion Transformer (Park et al., 2024, arXiv:2403.09176): what the released code says.

Released: byeongjun-park/Switch-DiT, commit 12fa9a5. No parameter counts are at hand; sizes are DiT's
(configs/dit.py).
"""

ROUTING = dict(experts=3, k=2, alpha=4.0, prior=1.0)                 # prior: the weight of its loss
DTR = dict(share=0.8, alpha=4.0)                                     # the baseline, a fixed mask of channels
PROCESS = dict(schedule='linear', steps=1000, weight='constant')     # also cosine, and min_snr
OPTIM = dict(steps=400_000, batch_size=256, rate=1e-4, weight_decay=0.0, warmup_steps=0, clip=0.0,
             average=0.9999, flip=True)
SAMPLING = dict(steps=250, guidance=1.5)

# README of the released code, guidance 1.5: FID of 50k images, IS, precision, recall.
REPORTED = {
    's': dict(dit=(44.28, 32.31, 0.41, 0.53), dtr=(37.43, 38.97, 0.47, 0.54),
              switch_dit=(33.99, 42.99, 0.52, 0.54)),
    'b': dict(dit=(27.96, 64.72, 0.57, 0.52), dtr=(16.58, 87.94, 0.66, 0.53),
              switch_dit=(16.21, 88.14, 0.68, 0.53)),
    'l': dict(dit=(12.59, 134.60, 0.73, 0.49), dtr=(8.90, 156.48, 0.77, 0.51),
              switch_dit=(8.78, 162.97, 0.78, 0.50)),
    'xl': dict(dit=(9.40, 166.83, 0.77, 0.48), dtr=(10.85, 158.45, 0.73, 0.47),
               switch_dit=(8.76, 169.17, 0.79, 0.48)),
}
