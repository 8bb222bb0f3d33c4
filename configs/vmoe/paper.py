"""V-MoE (Riquelme et al., 2021, arXiv:2106.05974): what the paper and its released configurations say.

Released: google-research/vmoe, vmoe/configs/vmoe_paper. None stands for a number that neither the paper nor
the configurations give. No parameter counts are at hand.
"""

import math

# pretrain_imagenet21k.py: blocks, widths, heads; peak learning rate in pre-training.
SIZES = {
    's32': dict(layers=8, d_model=512, d_ff=2048, num_heads=8, patch_size=32, peak=1e-3),
    'b32': dict(layers=12, d_model=768, d_ff=3072, num_heads=12, patch_size=32, peak=8e-4),
    'b16': dict(layers=12, d_model=768, d_ff=3072, num_heads=12, patch_size=16, peak=8e-4),
    'l32': dict(layers=24, d_model=1024, d_ff=4096, num_heads=16, patch_size=32, peak=6e-4),
    'l16': dict(layers=24, d_model=1024, d_ff=4096, num_heads=16, patch_size=16, peak=4e-4),
    # Only H clips the gradient in the paper's configurations.
    'h14': dict(layers=32, d_model=1280, d_ff=5120, num_heads=16, patch_size=14, peak=3e-4, clip=10.0),
}
# 48 blocks; Adafactor (unverified).
V_MOE_15B = dict(layers=48, d_model=1408, d_ff=6400, num_heads=16, experts=32, params=15e9)

# Routing. experts: of the paper on JFT-300M; the released models have 8.
ROUTING = dict(k=2, experts=32, released_experts=8, capacity_factor=1.05, multiple_of=4, noise_std=1.0,
               images_per_group=8)
IMPORTANCE = LOAD = 0.005          # the paper: lambda = 0.01 on half of their sum, summed over layers

OPTIM = dict(b1=0.9, b2=0.999, weight_decay=0.1, warmup_steps=10_000, end_rate=1e-5, epochs=None,
             batch_size=None)      # of the runs on JFT; the runs of the released models follow

# Images of the training splits, as the released configurations cut them; labels.
DATA = {
    'imagenet2012': dict(images=math.floor(0.99 * 1_281_167), labels=1000),     # train[:99%]
    'imagenet21k': dict(images=14_197_122 - 102_400, labels=21_843),            # full[102400:]
    'jft300m': dict(images=None, labels=None),                                  # not public
}

# vmoe_s32_last2_ilsvrc2012_randaug_light1.py: from scratch.
ILSVRC2012 = dict(size='s32', last=2, batch_size=8192, epochs=300, peak=3e-3, clip=1.0, expert_dropout=0.2,
                  eval_capacity_factor=4.0, head_bias=-math.log(1000), crop=0.05, central=224 / 256,
                  randaug=(2, 10), mixup=0.2)
# pretrain_imagenet21k.py.
IMAGENET21K = dict(size='b16', every=2, batch_size=4096, epochs=300, clip=1.0, head_bias=-10.0, crop=0.05,
                   central=224 / 256, randaug=(2, 20), mixup=0.5)
# vmoe_b16_imagenet21k_randaug_strong_ft_ilsvrc2012.py: fine-tuning, softmax cross-entropy, a new head without
# a representation before it, no dropout.
FINETUNE = dict(image_size=384, batch_size=1024, steps=10_000, momentum=0.9, peak=3e-3, end_rate=1e-5,
                warmup_steps=500, clip=10.0, capacity_factor=1.5, crop=0.05)

# Released checkpoints, means over three seeds: accuracies on ILSVRC2012 val (the last 1 % of train), test
# (its validation split), ReaL and V2.
RELEASED = {
    ('s32', 'from scratch', 224): (76.8, 73.1, 74.4, 59.2),
    ('s32', 'fine-tuned', 384): (78.8, 75.9, 77.1, 62.0),
    ('b16', 'imagenet21k, fine-tuned', 384): (89.2, 85.6, 84.1, 76.1),
}

# The paper: precision at 1 on JFT, accuracy fine-tuned on ImageNet, for ViT and for V-MoE (second-hand,
# unverified). h14 has its last 5 odd blocks sparse.
REPORTED = {
    's32': dict(vit=(29.05, 73.73), vmoe=(34.00, 77.08)),
    'b16': dict(vit=(44.58, 84.15), vmoe=(49.31, 85.26)),
    'l16': dict(vit=(53.40, 87.12), vmoe=(57.65, 87.41)),
    'h14': dict(vit=(56.68, 88.08), vmoe=(60.12, 88.23)),
    '15b': dict(vit=None, vmoe=(None, 90.35)),
}
