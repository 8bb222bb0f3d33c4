"""Imports a Hugging Face or T5X checkpoint as a run directory, or exports a run directory to Hugging Face.

stmoe convert DOWNLOADED runs/imported          then: stmoe eval runs/imported --config.data.files=TEXT
stmoe convert runs/imported NEW                 the same names and, without training, the same bytes
stmoe convert runs/try NEW --to mixtral         of a run that was trained here, if its model is one of these

Families: t5, switch_transformers, mixtral, olmoe, qwen2_moe, deepseek_v2, deepseek_v3 (by config.json). Only
safetensors are read; pickle files (*.bin, *.pt) are never opened. A SentencePiece model beside the tensors
comes along. Without such a model, --config.data.vocab=FILE gives it, or what reads texts refuses. A T5X
folder (target.* arrays) has no configuration: sizes are read off the arrays. --config.FIELD=VALUE changes the
configuration that an import writes.
"""

import pathlib

from stmoe import errors
from stmoe import ranges

DTYPES = ('F32', 'BF16', 'F16')


def add_arguments(parser):
  parser.add_argument('source', metavar='SOURCE',
                      help='a folder of safetensors, a T5X checkpoint, or a run directory')
  parser.add_argument('target', metavar='TARGET', help='the folder to be; must not be there yet')
  parser.add_argument('--to', metavar='FAMILY', help='of an export; default: that of the import')
  parser.add_argument('--step', type=ranges.Natural, help='checkpoint of an export; default: the newest')
  parser.add_argument('--dtype', choices=DTYPES, help='of exported tensors; default: as imported, else F32')
  parser.set_defaults(overrides=())


def run(args):
  source = pathlib.Path(args.source)
  if not source.is_dir():
    raise errors.UserError(f'{source} is no folder' + ('; give the one it is in' if source.exists() else ''))
  if not (source / 'checkpoints').is_dir():
    options = [f'--{name}' for name in ('to', 'step', 'dtype') if getattr(args, name) is not None]
    if options:
      raise errors.UserError(f'{options[0]} is for exports, and {source} is no run directory (it has no '
                             'checkpoints)')
    from stmoe.derive import convert
    record = convert.read(source, args.target, args.overrides)
    print(f'{args.target}: {record["parameters"]:,} parameters of the family {record["family"]}, step 0')
    return
  from stmoe.derive import convert
  step, family, tensors = convert.write(source, args.target, args.overrides, args.to, args.dtype, args.step)
  number = len({tensor.file for tensor in tensors.values()})
  print(f'{args.target}: {len(tensors)} tensors of the family {family} in {number} file(s), '
        f'from step {step:,}')
