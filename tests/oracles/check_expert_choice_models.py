"""Whole models of the expert_choice cases; see `models_flaxformer` for the translation."""

import models_flaxformer


def encoder_decoder(case):
  models_flaxformer.check(case)
