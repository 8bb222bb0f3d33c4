"""Checks of Qwen2-MoE's block, with its shared expert behind a sigmoid gate."""

import blocks_hf


def block(case):
  c = case.config
  blocks_hf.softmax_block(case, c.get('norm_topk_prob', False),
                          shared=dict(d_ff=c['Fs'], num_shared=1, sigmoid_gate=True))
