"""SuperGLUE (Wang et al., 2019, arXiv:1905.00537) as T5 (arXiv:1910.10683) mixes it."""

# Training examples of each task in text-to-text form: MultiRC by answer, ReCoRD by right entity, WSC by right
# referent, as T5's mixture counts them. Weights are these, at most st_moe.paper.FINETUNE['task_cap'] each.
SIZES = dict(boolq=9_427, cb=250, copa=400, multirc=27_243, record=138_854, rte=2_490, wic=5_428, wsc=259,
             dpr=1_322)
TASKS = tuple(name for name in SIZES if name != 'dpr')
