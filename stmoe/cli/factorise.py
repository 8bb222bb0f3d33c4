"""Makes a sparse run of a trained dense one: its feed-forward layers are cut into experts.

stmoe factorise runs/dense factor_llm:num_experts=4 --workdir runs/chunks    contiguous chunks of units
stmoe factorise runs/dense dynamic_dino:copies=4,k=2 --workdir runs/moe      copies, in slices
stmoe factorise runs/dense emoe:num_blocks=4,k=2 --workdir runs/blocks       blocks of units with like keys
stmoe train runs/moe                                                        goes on from there

METHOD is a file of stmoe/surgery with its fields; else as in `stmoe compress --help`. `stmoe upcycle` also
begins with a dense run; there the new model is an experiment of its own.
"""

from stmoe.cli import compress

KIND = 'factorisation'

COMPUTES = True


def add_arguments(parser):
  compress.add_arguments(parser, KIND)


def run(args):
  compress.run(args, KIND)
