"""Bytes per token of the rows that an evaluation scores, and of the whole split that they are a part of.

  python -m stmoe.experiments.scored_bytes lm/zoo
  python -m stmoe.experiments.scored_bytes base/small:method=base eval.batches=50 eval.batch_size=8

Bits per byte are nats per token / ln 2 / bytes per token. The bytes per token were once those of the whole
split, even where `eval.batches` above 0 scored a part of the split. Such a figure, its mean and its spread
alike, times `split / scored` is the figure reported now. The factor depends on the data alone.
"""

import argparse

from stmoe import experiment
from stmoe.data import batches as pipeline


def ratios(cfg):
  """Returns (bytes per token of the split, of the rows that eval.batches of `cfg` score)."""
  opened = pipeline.source(cfg)
  facts, tokens, num_bytes = opened.info(), 0, 0
  for batch in pipeline.eval_batches(cfg, opened=opened, most=cfg.eval.batches):
    weights = batch['decoder_loss_weights']
    tokens += weights.sum()
    num_bytes += (weights * facts['vocab'].num_bytes(batch['decoder_target_tokens'])).sum()
  return facts['bytes_per_token'], num_bytes / tokens


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('name', help='an experiment')
  parser.add_argument('overrides', nargs='*', metavar='field=value')
  args = parser.parse_args()
  cfg, name = experiment.load(args.name, args.overrides)
  split, scored = ratios(cfg)
  print(f'{name}: {split:.6f} bytes per token of the split, {scored:.6f} of the rows scored; '
        f'split / scored = {split / scored:.7f}')


if __name__ == '__main__':
  main()
