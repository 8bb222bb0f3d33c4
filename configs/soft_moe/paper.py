"""Soft MoE (Puigcerver et al., 2023, arXiv:2308.00951): what its released configurations say.

google-research/vmoe, vmoe/projects/soft_moe. None is what they do not give; no figure of the paper is at
hand.
"""

# configs/common.py, configs/pretrain_jft4b.py: ViT sizes; the last blocks, as many as given, are sparse.
SIZES = {
    's16': dict(layers=12, d_model=384, d_ff=1536, num_heads=6, patch_size=16, experts=128, last=6),
    's14': dict(layers=12, d_model=384, d_ff=1536, num_heads=6, patch_size=14, experts=256, last=6),
    'b16': dict(layers=12, d_model=768, d_ff=3072, num_heads=12, patch_size=16, experts=128, last=6),
    'l16': dict(layers=24, d_model=1024, d_ff=4096, num_heads=16, patch_size=16, experts=128, last=12),
    'h14': dict(layers=32, d_model=1280, d_ff=5120, num_heads=16, patch_size=14, experts=256, last=16),
}
SLOTS = 1                          # of each expert
IMAGE_SIZE = 224
POOLING = 'mean'                   # of all tokens, no class token; attention normalises queries and keys

# JFT-4B: batch and steps of the long runs; labels (the head's initial bias is -ln of their number).
TRAINING = dict(batch_size=4096, steps=4_000_000, steps_h=2_000_000, labels=29_593)
# The two schedules of configs/common.py. Weight decay is 3.0 on the head and 0.03 on other matrices.
OPTIM = dict(b1=0.9, b2=0.999, weight_decay=0.03, head_weight_decay=3.0, clip=1.0, warmup_steps=10_000)
LINEAR = dict(peak=8e-4, end_rate=0.0)
RSQRT = dict(peak=1e-3, timescale=10_000, cooldown_steps=50_000)

REPORTED = None                    # precisions and accuracies: not at hand
