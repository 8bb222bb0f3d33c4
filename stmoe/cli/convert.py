"""Imports a Hugging Face or T5X checkpoint as a run directory, or exports a run directory to Hugging Face.

stmoe convert DOWNLOADED runs/imported          then: stmoe eval runs/imported --config.data.files=TEXT
stmoe convert runs/imported NEW                 the same names and, without training, the same bytes
stmoe convert runs/try NEW --to mixtral         of a run that was trained here, if its model is one of these
stmoe convert runs/imported NEW --max-shard 2GB    in files of at most that size, with an index
stmoe convert runs/imported NEW --dtype MXFP4     experts of four bits (gpt-oss), all else BF16
stmoe convert DOWNLOADED runs/small --dtype BF16   parameters of two bytes, rounded where tensors have more
stmoe convert runs/adapted NEW --adapter          its adapter alone, in PEFT's layout
stmoe convert runs/mixlora NEW --adapter --form legacy      of a MixLoRA, by the names of older releases
stmoe convert ADAPTER runs/adapted --base runs/imported     a run of the base and an adapter in this layout

The family is the model_type in config.json, one of those at --to below. Only safetensors are read; pickle
files (*.bin, *.pt) are never opened. The vocabulary beside the tensors comes along: tokenizer.json, else a
SentencePiece model. Without one, --config.data.vocab=FILE gives it, or what reads texts refuses. Texts begin
with the first token that tokenizer.json adds, if any, as in transformers 5. --bos decides otherwise, for
models that were trained otherwise; DeepSeek's folders say that theirs were. A T5X folder (target.* arrays)
has no configuration: sizes are read off the arrays. --config.FIELD=VALUE changes the configuration that an
import writes. An export has the files that the import had beside its tensors, and a model card.

Parameters of a run take two bytes each where all tensors are BF16, and four else. Weights of eight bits with
scales (DeepSeek-V3's release, quant_method fp8) are read as their product. Experts in MXFP4 (gpt-oss) come
back as they were. With --dtype MXFP4 any run of that family is so written.

An adapter (LoRA, MixLoRA) is a folder of adapter_config.json and adapter_model.safetensors. Its tensors are
called as the matrices of the base's family, or by our own paths beside a run that was trained here. It is
read beside the base that it was trained with, and written byte for byte as it was read. MixLoRA has two forms
of names (docs/adapters.md). An import tells them apart, and an export writes the one that --form says.
"""

import pathlib

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import ranges
from stmoe.derive import downloaded
from stmoe.interop import peft

DTYPES = ('F32', 'BF16', 'F16', 'MXFP4')
DEFAULT = '5GB'


def add_arguments(parser):
  parser.add_argument('source', metavar='SOURCE',
                      help='a folder of safetensors, a T5X checkpoint, or a run directory')
  parser.add_argument('target', metavar='TARGET', help='the folder to be; must not be there yet')
  parser.add_argument('--to', metavar='FAMILY', help='of an export; default: that of the import; one of '
                      f'{", ".join(lookup.available("family"))}')
  parser.add_argument('--step', type=ranges.Natural, help='checkpoint of an export; default: the newest')
  parser.add_argument('--dtype', choices=DTYPES,
                      help='of exported tensors, default: as imported, else F32; of imported parameters, '
                      'default: BF16 if all tensors are, else F32')
  parser.add_argument('--max-shard', type=ranges.Size(), metavar='SIZE',
                      help='most bytes of an exported file (900MB, 5GB), unless one tensor is larger; '
                      f'default: {DEFAULT}')
  parser.add_argument('--adapter', action='store_true', help='export the adapter of a run, and not its base')
  parser.add_argument('--form', choices=tuple(peft.FORMS),
                      help='with --adapter, of the names of a MixLoRA: those that the package mixlora opens, '
                      f'or older ones; default: as imported, else {peft.CURRENT}')
  parser.add_argument('--base', metavar='RUN', help='what an imported adapter stands beside: a run '
                      'directory, a downloaded folder, or an experiment')
  parser.add_argument('--bos', choices=('yes', 'no'),
                      help='whether texts begin with the first token; default: as tokenizer.json adds it')
  parser.set_defaults(overrides=())


def run(args):
  source = pathlib.Path(args.source)
  if not source.is_dir():
    instead = '; give the one it is in' if source.exists() else experiment.instead_of(args.source)
    raise errors.UserError(f'{args.source} is no folder{instead}')
  if args.form is not None and not args.adapter:
    raise errors.UserError('--form is for exports of adapters; nearest: stmoe convert RUN NEW --adapter '
                           f'--form {args.form}')
  if args.base is not None or args.adapter or (source / peft.CONFIG).is_file():
    _adapter(source, args)
    return
  if not (source / 'checkpoints').is_dir():
    options = [f'--{name}' for name in ('to', 'step', 'max-shard')
               if getattr(args, name.replace('-', '_')) is not None]
    if options:
      raise errors.UserError(f'{options[0]} is for exports, and {source} is no run directory (it has no '
                             'checkpoints)')
    from stmoe.derive import convert
    bos = None if args.bos is None else args.bos == 'yes'
    record = convert.read(source, args.target, args.overrides, bos=bos, dtype=args.dtype)
    print(f'{args.target}: {record["parameters"]:,} parameters of the family {record["family"]}, '
          f'{record["bytes"]:,} bytes, step 0')
    return
  if args.bos is not None:
    raise errors.UserError(f'--bos is for imports, and {source} is a run directory')
  from stmoe.derive import convert
  step, family, tensors = convert.write(source, args.target, args.overrides, args.to, args.dtype, args.step,
                                        args.max_shard or ranges.Size().read(DEFAULT))
  number = len({tensor.file for tensor in tensors.values()})
  print(f'{args.target}: {len(tensors)} tensors of the family {family} in {number} file(s), '
        f'from step {step:,}')


def _adapter(source, args):
  """Reads or writes an adapter alone."""
  is_run = (source / 'checkpoints').is_dir()
  if is_run != args.adapter or is_run == (args.base is not None):
    raise errors.UserError(f'{source} is {"a run" if is_run else "no run"}; nearest: stmoe convert RUN NEW '
                           '--adapter, or stmoe convert ADAPTER NEW --base RUN')
  refused = [f'--{name}' for name in ('dtype', 'bos', 'max-shard')
             if getattr(args, name.replace('-', '_')) is not None]
  if refused:
    raise errors.UserError(f'{refused[0]} is not for adapters; nearest: without {refused[0]}')
  if is_run:
    from stmoe.derive.adapter import saved
    step, tensors = saved.write(source, args.target, args.to, args.step, args.form)
    print(f'{args.target}: {len(tensors)} tensors of an adapter, from step {step:,}')
    return
  base = downloaded.run_directory(args.base)
  from stmoe.derive.adapter import loaded
  facts = loaded.read(source, base, args.target, args.overrides, to=args.to, step=args.step)
  before, after = facts['parameters']
  print(f'{args.target}: {after - before:,} parameters of an adapter beside {before:,} of {base}, step 0')
