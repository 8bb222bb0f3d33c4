"""MC-SMoE (Li et al., 2023, arXiv:2310.01334): what the paper and its released scripts say.

Switch-Base with 32 experts is fine-tuned on a task, merged to 8 experts a layer on average, then compressed.
"""

MERGE = dict(
    samples=256,                       # of the task, for usage and similarity
    experts=(32, 8),                   # of a layer, before and after, on average over the merged layers
    encoder=(3, 5, 7, 9, 11), decoder=(1, 3, 5, 7, 9, 11),     # blocks; the encoder's first sparse one stays
    align='weights', similarity='router logits', allocation='global',
    epochs=10, warmup=16,
)
COMPRESS = dict(rank=32, kept=0.10, memory=0.85, before=100, after=400, epochs=50, warmup=50)
# alpha KL of softmaxes at tau, without tau^2, summed over a row; routers frozen, no balance loss, no dropout.
DISTIL = dict(weight=0.2, temperature=2.0, hidden=0.0)
OPTIM = dict(optimizer='adamw', b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, schedule='linear')
# task: (learning rate, batch size)
TASKS = dict(sst2=(1e-4, 64), mrpc=(5e-5, 32), multirc=(3e-5, 32), copa=(3e-5, 8), winogrande=(1e-5, 32),
             squad=(5e-5, 16), wikiqa=(5e-5, 32), hotpotqa=(1e-4, 32))
# "Up to 80% memory and 20% FLOPs reduction" with little loss on eight tasks (abstract).
REPORTED = dict(memory=0.8, flops=0.2)
