"""Checks of Mixtral's block and of its auxiliary loss, which takes all layers for one."""

import blocks_hf
import jax
import numpy as np

from stmoe.routers import deepseek_moe


def block(case):
  # Its gates are always over their sum: `normalise` says so in words.
  blocks_hf.softmax_block(case, True)


def aux_loss(case):
  k, logits = case.config['k'], case['router_logits']                # [L, T, E]
  layers, tokens, experts = logits.shape
  # Counts and probabilities are taken over all layers together: to us they are one routing group.
  mask = case['attention_mask'] > 0 if 'attention_mask' in case else np.ones(tokens, bool)
  mask = np.tile(mask.reshape(1, tokens), (1, layers))
  _, aux = jax.jit(deepseek_moe.deepseek_moe, static_argnums=2)(logits.reshape(1, -1, experts), mask, k)
  case.assert_close('loss', k * aux.losses['balance'][None])         # f adds up to k there, to 1 here
