"""Robust question answering with mixtures on DistilBERT (Zhou, Liu and Dong, 2022, arXiv:2204.09598).

No code was published. The abstract is what is known of the paper; what stands here beside RESULTS is the
usual set-up of the course it was written in and of DistilBERT (arXiv:1910.01108), and unverified. None is
what was not found.
"""

# DistilBERT-base, uncased.
SIZE = dict(layers=6, d_model=768, num_heads=12, d_ff=3072, positions=512, vocab_size=30_522, dropout=0.1,
            epsilon=1e-12)

# Windows of [CLS] question [SEP] context [SEP]; longest predicted answer (unverified).
WINDOW = dict(length=384, stride=128, answer_length=15)

# The mixture on top: experts not found, k (unverified); the gate reads [CLS] or every token (unverified).
HEAD = dict(experts=None, k=2, gate='first', d_ff=768, importance=0.1, load=0.1)   # 0.01 to 0.1 (unverified)
# Feed-forward layers inside: Switch (unverified).
FFN = dict(experts=None, capacity_factor=1.25, balance=0.01)

# (unverified)
OPTIM = dict(name='adamw', peak=3e-5, batch_size=16, epochs=3)
IN_DOMAIN = dict(sets=('SQuAD', 'NewsQA', 'Natural Questions'), examples=50_000)       # of each
OUT_OF_DOMAIN = dict(sets=('RelationExtraction', 'DuoRC', 'RACE'), examples=127)

# Out of domain, from the abstract: F1 of validation, its relative gain in per cent, F1 and EM of test. The
# baseline's F1 follows from the first two.
RESULTS = dict(validation_f1=53.477, gain=9.52, test_f1=59.506, test_em=41.651, baseline_f1=48.8)
