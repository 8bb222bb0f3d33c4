"""Checks of OLMoE's block."""

import blocks_hf


def block(case):
  blocks_hf.softmax_block(case, case.config.get('norm_topk_prob', False))
