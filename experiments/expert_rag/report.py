"""The table and the figure of README.md: what a gate before retrieval saves, by ExpertRAG's cost model.

  python -m stmoe.experiments.expert_rag.report runs/expert_rag
"""

import pathlib
import sys

from stmoe import errors
from stmoe import experiment
from stmoe.analysis import canvas
from stmoe.analysis import flops
from stmoe.analysis import retrieval

MODEL, LARGER = 'deepseek_moe/sizes', 'deepseek_moe/sizes:size=v2'
QUERY, DOCUMENTS, LENGTH = 64, 5, 256            # tokens of a query; documents, and tokens of one
ENTRIES, WIDTH = 10_000_000, 768                 # of the index
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def main(words):
  """Prints the table and writes the figure to the folder in `words`; returns the exit code."""
  try:
    if len(words) != 1:
      raise errors.UserError('give a folder: python -m stmoe.experiments.expert_rag.report FOLDER')
    small, large = (experiment.load(name)[0] for name in (MODEL, LARGER))
    per_token = retrieval.of_configuration(small)
    found = retrieval.exact_search(ENTRIES, WIDTH, per_token.total, DOCUMENTS, LENGTH)
    model, larger = QUERY * per_token.total, QUERY * retrieval.of_configuration(large).total
    print(f'{MODEL}, a query of {QUERY} tokens: routers {QUERY * per_token.router:.3g}, experts '
          f'{QUERY * per_token.experts:.3g}, rest {QUERY * per_token.rest:.3g} FLOPs')
    print(f'a search {found.search:.3g}, a document {found.read:.3g} FLOPs; {LARGER}: {larger:.3g}')
    for share in SHARES:
      print(f'share {share:.2f}: {retrieval.expected(model, share, found):.3g} FLOPs, saves '
            f'{retrieval.saving(share, found):.3g}')
    print(f'{LARGER} costs as much as share {retrieval.break_even(larger, model, found):.2f}')
    numbers = retrieval.stored(flops.parameters(small)['total'], ENTRIES, WIDTH)
    print(f'numbers held: {numbers:.3g} with the index; {LARGER}: {flops.parameters(large)["total"]:.3g}')
    canvas.save(retrieval.draw(model, found, larger), pathlib.Path(words[0]), 'cost')
  except errors.UserError as error:
    print(f'stmoe: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
