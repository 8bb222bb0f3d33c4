"""The vocabulary of an import: where it is found, how texts begin with it, and what the run keeps of it."""

from collections.abc import Callable
import pathlib
import shutil
import typing

import ml_collections

from stmoe import errors
from stmoe import lookup
from stmoe.data import record
from stmoe.data.text import merges
from stmoe.data.text import tokenizer
from stmoe.interop import tensors

SENTENCEPIECE = 'vocabulary.model'       # what a run calls the file


def of(source: pathlib.Path, cfg: ml_collections.ConfigDict, say: Callable) -> typing.Any:
  """Returns the vocabulary of an import that is in files, or None.

  The configuration's own data.vocab comes before the files beside the tensors. Without either, data.vocab is
  empty, and what reads texts refuses.

  Args:
    source: the folder. cfg: configuration of the run to be.
    say:    called with a line where there is no vocabulary.
  Raises:
    UserError: the files are none, or have more ids than the model.
  """
  spec = cfg.data.vocab
  if spec == 'bytes' or spec.startswith('train:'):                   # of this project: nothing to copy
    return None
  for name in (tokenizer.FILE, *tokenizer.OTHERS, *tokenizer.PIECES, *merges.FILES) * (not spec):
    if (source / name).is_file():
      tensors.inside(source, name)
  file = pathlib.Path(spec) if spec else tokenizer.within(source)
  if file is None:
    say(f'no {tokenizer.FILE} and no SentencePiece model: what reads texts will want '
        '--config.data.vocab=FILE')
    return None
  of_t5 = lookup.encodes_inputs(cfg.model.name) and 'spiece' in file.name
  extra = cfg.data.extra_ids or (100 if of_t5 else 0)
  vocabulary = tokenizer.opened(file, extra)
  if vocabulary.vocab_size > cfg.model.vocab_size:
    raise errors.UserError(f'{file} has {vocabulary.vocab_size} ids and config.json vocab_size='
                           f'{cfg.model.vocab_size}: the vocabulary is of another model')
  return vocabulary


def starts(vocabulary: typing.Any, model: dict, bos: bool | None, say: Callable) -> dict:
  """Returns the fields start_id and start_prompts of a decoder with a tokenizer.json, else {}.

  Texts begin after the first token that the post-processor adds. Without one they begin after the token that
  ends texts, as harnesses of evaluation have it, and prompts begin by themselves.

  Args:
    model: section of the configuration, with what config.json and generation_config.json say.
    bos:   whether there is to be a first token; None = as the post-processor says.
    say:   called with a line where tokenizer_config.json says otherwise.
  Raises:
    UserError: a first token is wanted and none is there, or `bos` says nothing about such a model.
  """
  if not hasattr(vocabulary, 'first_ids') or model['name'] != 'lm':
    if bos is not None:
      raise errors.UserError(f'--bos is for decoders with a {tokenizer.FILE}, and this is none')
    return {}
  added = vocabulary.first_ids[-1:]
  first = added[0] if added else vocabulary.id('bos_token')
  if bos is None and isinstance(vocabulary.adds_bos, bool) and vocabulary.adds_bos != bool(added):
    say(f'{tokenizer.CONFIG} says add_bos_token={vocabulary.adds_bos}, and the post-processor of '
        f'{tokenizer.FILE} adds {"one" if added else "none"}, which counts, as in transformers 5; for a '
        f'model trained {"without" if added else "with"} one: --bos {"no" if added else "yes"}')
  if bos and first is None:
    raise errors.UserError(f'--bos yes: {vocabulary.path} has no first token: no bos_token in '
                           f'{tokenizer.CONFIG}, and its post-processor adds none')
  if bool(added) if bos is None else bos:
    return dict(start_id=first, start_prompts=True)
  ends = vocabulary.id('eos_token'), *model.get('end_ids', ()), model.get('start_id', 0)
  return dict(start_id=next(end for end in ends if end is not None), start_prompts=False)


def keep(vocabulary: typing.Any, path: pathlib.Path, target: pathlib.Path,
         cfg: ml_collections.ConfigDict) -> str | None:
  """Copies the files of a vocabulary into the run, and names the copy in `cfg`; returns the digest, or None.

  Args:
    vocabulary: from `of`. path: where the run is being made; target: where the run will be.
  """
  if vocabulary is None:
    return None
  kept = vocabulary.files
  if vocabulary.path.suffix == '.json':
    kept = {f'{record.IMPORTED}/{name}': file for name, file in kept.items()}
    (path / record.IMPORTED).mkdir()
  else:
    kept = {SENTENCEPIECE: vocabulary.path}
  for name, file in kept.items():
    shutil.copyfile(file, path / name)
  cfg.data.update(vocab=str(target.resolve() / next(iter(kept))), extra_ids=vocabulary.extra_ids)
  return vocabulary.digest
