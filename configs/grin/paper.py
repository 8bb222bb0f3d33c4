"""GRIN (Liu et al., 2024, arXiv:2409.12136) and Phi-3.5-MoE, which has its router.

Widths are the defaults of the class PhimoeConfig in huggingface/transformers, which says that they make
Phi-3.5-MoE; they make the printed number of active parameters. None is what neither gives.
"""

SIZE = dict(d_model=4096, d_ff=6400, num_heads=32, num_kv_heads=8, head_dim=128, layers=32, vocab_size=32_064,
            experts=16, k=2, rotary_base=1e6, active=6.6e9)
EPSILON = 0.01                     # router_jitter_noise, which vllm-project/vllm has as a constant
INPUT_JITTER = 0.0
BALANCE = 0.001                    # router_aux_loss_coef, of fine-tuning with that class; GRIN's is not known
TOKENS = 4e12                      # (unverified); trained without drops and without expert parallelism
OPTIM = LENGTH = BATCH = None

# Summary of the abstract.
REPORTED = dict(mmlu=79.4, hellaswag=83.7, humaneval=74.4, math=58.9)
# Others' test of version 2 (ReMoE, arXiv:2412.14711, table 2): 182M active, 8 experts, top-1, 30B tokens,
# zero-shot average. Version 2 is no sure win at this scale.
REMOE_TABLE = dict(dense=38.20, hash=38.79, sparsemixer_v2=38.39, expert_choice=38.53, top_k=39.67,
                   remoe=40.03)

ACTIVE = (('grin/sizes', SIZE['active'], 1e8),)
