"""XSum (Narayan et al., 2018, arXiv:1808.08745) and CNN/DailyMail (arXiv:1704.04368).

Fine-tuned ROUGE-2 is in st_moe.paper.REPORTED. Lengths: T5 gives CNN/DailyMail 512 input tokens; the others
are this project's.
"""

# task -> (input, target tokens)
LENGTHS = dict(xsum=(512, 64), cnn_dailymail=(512, 128), scitldr=(512, 64), dialogsum=(512, 128))
