"""AdvMoE (arXiv:2308.10110): numbers of the released code; the paper's tables were not at hand.

Released: OPTML-Group/Robust-MoE-CNN, commit c50796f. None is what was not found.
"""

# Channels and blocks of each stage; ResNet-18 and -50 for small images.
SIZES = {
    'resnet18': dict(block='basic', widths=(64, 128, 256, 512), depths=(2, 2, 2, 2)),
    'resnet34': dict(block='basic', widths=(64, 128, 256, 512), depths=(3, 4, 6, 3)),
    'resnet50': dict(block='bottleneck', widths=(64, 128, 256, 512), depths=(3, 4, 6, 3)),
}
STEM = 64
ROUTER = dict(width=16, depth=3)         # a ResNet-20 with its mean over 64 channels
EXPERTS, RATIO = 2, 0.5                  # experts of half the width
# Attack of training, and of evaluation: 10 steps in the released code, 20 in the paper's tables (u).
ATTACK = dict(epsilon=8 / 255, step_size=5 / 255, steps=2, noise=1e-3)
EVAL = dict(eval_step_size=2 / 255, eval_steps=20)
BETA = ALPHA = 6.0
OPTIM = dict(momentum=0.9, weight_decay=5e-4, peak=0.1, batch_size=128, epochs=100)
CIFAR = dict(image_size=32, images=50_000, labels=10)
# The abstract: points of robust accuracy over the dense network of the original width, and inference cost.
REPORTED = dict(robust_accuracy=(1.0, 4.0), inference_cost=-0.5)
