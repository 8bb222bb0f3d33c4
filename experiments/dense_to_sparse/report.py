"""Which way from a dense model to a sparse one is best after equally many more FLOPs?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.dense_to_sparse import sweep
from stmoe.sweep import collect

BITS = 'eval/bits_per_byte'
NAMES = ('dense_more', *[name for name in sweep.FACTORISED if name != 'dense_more'], *sweep.UPCYCLED)
SAME = 1e-3                              # bits per byte, of models that compute the same


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name, metric=BITS: collect.values(results, name, metric)
  began = lambda name: of(name, f'start/{BITS}')
  return [
      *(verdict.alike(f'{name} begins as the dense model', began(name), of('dense'), SAME)
        for name in ('dynamic_dino', 'upcycled', 'virtual_groups')),
      verdict.exceeds('Dynamic-DINO better than dense, trained on', of('dynamic_dino'), of('dense_more')),
      verdict.exceeds('upcycled better than dense, trained on', of('upcycled'), of('dense_more')),
      verdict.exceeds('virtual groups better than dense, trained on', of('virtual_groups'), of('dense_more')),
      verdict.exceeds('virtual groups better than upcycled', of('virtual_groups'), of('upcycled')),
      verdict.exceeds('FactorLLM better than all chunks trained, without its loss', of('factor_llm'),
                      of('factor_llm_free')),
      verdict.exceeds('FactorLLM recovers: better than at its start', of('factor_llm'), began('factor_llm')),
      verdict.exceeds('Read-ME better than the dense model that it began with', of('read_me'), of('dense')),
      verdict.exceeds('Read-ME better than dense, trained on', of('read_me'), of('dense_more'))]


def figures(results):
  """Returns bits per byte of every way, at its start and at its end."""
  groups = {'dense': collect.values(results, 'dense', BITS)}
  for name in NAMES:
    groups[f'{name}, at once'] = collect.values(results, name, f'start/{BITS}')
    groups[name] = collect.values(results, name, BITS)
  return dict(bits=drawing.points(groups, 'bits per byte of the validation text'))
