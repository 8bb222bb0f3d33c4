"""Whole models of the st_moe cases; see `models_flaxformer` for the translation."""

import models_flaxformer


def encoder_decoder(case):
  models_flaxformer.check(case)
