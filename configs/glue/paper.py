"""GLUE (Wang et al., 2018, arXiv:1804.07461) as T5 (arXiv:1910.10683) mixes it."""

# Training examples, by which T5 weighs its mixture glue_v002. Weights here are these, at most
# st_moe.paper.FINETUNE['task_cap'] each. MNLI is judged on its matched part. As in T5 WNLI is not in the
# mixture; T5 trains on WSC and DPR in its place.
SIZES = dict(cola=8_551, sst2=67_349, mrpc=3_668, qqp=363_849, stsb=5_749, mnli=392_702, qnli=104_743,
             glue_rte=2_490)
TASKS = tuple(SIZES)
