"""MoFME (arXiv:2312.16610): numbers of the released scripts and of the abstract; the tables were not at hand.

Released: RoyZry98/MoFME-Pytorch, commit 522deb8. None is what was not found.
"""

SIZE = dict(d_model=384, num_heads=8, head_dim=64, d_ff=1536, depth=2, patch_size=8, stem=32, tail=128)
EXPERTS, K = (4, 8, 16), (2, 4)          # that were tried
PASSES, ROUTER_DROPOUT = 5, None         # of training; the released router has no dropout (see the router)
DROPOUT = 0.1
CROP = 240                               # of images of 480 x 720
# The released rate is 2e-4 times batch / 32; 200 epochs, 3 of them a warm-up, then a cosine to 1e-6.
OPTIM = dict(b1=0.9, b2=0.999, peak=4e-4, batch_size=64, epochs=200, warmup_epochs=3, end_rate=1e-6,
             weight_decay=None, images=None)
PERCEPTUAL = 0.04                        # weight of the distance of VGG-16's features, beside smooth L1
# The abstract: in dB over its baselines, and parameters and time less than a conventional mixture's.
REPORTED = dict(psnr=(0.1, 0.2), parameters=-0.72, inference_time=-0.39)
