"""PR-MoE (DeepSpeed-MoE, Rajbhandari et al., 2022, arXiv:2201.05596): what paper, code and scripts say.

Training values are those of Megatron-DeepSpeed, examples_deepspeed/MoE; None is what none of them gives.
"""

# Every second layer is sparse. experts: of the standard MoE in all sparse layers; of PR-MoE in all but the
# last two, which have twice as many. F = 4 D. params: of the standard MoE, of PR-MoE, of its student.
SIZES = {
    '350m': dict(d_model=1024, num_heads=16, head_dim=64, layers=24, moe=128, experts=32, batch=256,
                 peak=3.0e-4, end=1.0e-6, params=dict(moe=13e9, pr_moe=4e9, student=3.5e9)),
    '1.3b': dict(d_model=2048, num_heads=16, head_dim=128, layers=24, moe=128, experts=64, batch=512,
                 peak=1.2e-4, end=1.0e-6, params=dict(moe=52e9, pr_moe=31e9, student=27e9)),
}
WIDE = 2                           # sparse layers, the last ones, that have twice the experts
STUDENT = 21                       # layers of a student: an eighth fewer; which ones go is not stated
VOCAB = 50257                      # GPT-2's (unverified)

LENGTH, TOKENS = 2048, 300e9
WARMUP_TOKENS, DECAY_TOKENS = 375e6, 300e9
INIT_STD = dict([('350m', 0.014), ('1.3b', None)])
BETAS = WEIGHT_DECAY = CLIP = None

CAPACITY_FACTOR, MIN_CAPACITY = (1.0, 1.0), 4
BALANCE = 0.01
# Students: tau^2 KL at tau = 1 with weight 1 beside the cross entropy, for the first 400,000 steps.
DISTILLATION = dict(temperature=1.0, weight=1.0, until=400_000)

# Zero-shot LAMBADA, PIQA, BoolQ, RACE-h, TriviaQA, WebQs (350M; tutorial of DeepSpeed).
REPORTED = dict(
    dense=(52.03, 69.31, 53.64, 31.77, 3.21, 1.57), moe=(62.70, 74.59, 60.46, 35.60, 16.58, 5.17),
    pr_moe=(63.65, 73.99, 59.88, 35.69, 16.30, 4.73), student=(63.46, 73.34, 58.07, 34.83, 13.69, 5.22))
# 1.3B (secondary source): LAMBADA, PIQA, BoolQ, TriviaQA.
REPORTED_LARGE = dict(moe=(69.84, 76.71, 64.92, 31.29), pr_moe=(70.60, 77.75, 67.16, 28.86))

PARAMETERS = (
    ('pr_moe/sizes:model=moe', SIZES['350m']['params']['moe'], 1e9),
    ('pr_moe/sizes', SIZES['350m']['params']['pr_moe'], 1e9),
    ('pr_moe/sizes:layers=21', SIZES['350m']['params']['student'], 1e8),
    ('pr_moe/sizes:size=1.3b,model=moe', SIZES['1.3b']['params']['moe'], 1e9),
    ('pr_moe/sizes:size=1.3b', SIZES['1.3b']['params']['pr_moe'], 1e9),
    ('pr_moe/sizes:size=1.3b,layers=21', SIZES['1.3b']['params']['student'], 1e9),
)
