"""What stands beside the tensors of an export: configurations, tokenizer files and a model card.

Files that the import had come back as they were, also from what was fine-tuned from it. A run that was
trained here gets its vocabulary, where that is a file, under the name that other libraries look for. The card
is always written anew.
"""

import pathlib
import shutil

import ml_collections

from stmoe import errors
from stmoe import files
from stmoe import lookup
from stmoe.data import batches as pipeline
from stmoe.data import record
from stmoe.data.text import vocab
from stmoe.derive import card
from stmoe.interop import fields

GENERATION = 'generation_config.json'


def write(target: pathlib.Path, run: pathlib.Path, cfg: ml_collections.ConfigDict, name: str, family,
          hf: dict | None, step: int) -> None:
  """Writes these files into the folder `target`.

  Args:
    run:  run directory; cfg: its configuration, as it is exported.
    name: of the family; family: its module.
    hf:   the config.json; None = as imported.
    step: of the checkpoint.
  """
  imported = sorted((run / 'source').glob('*'))
  for file in imported:
    shutil.copyfile(file, target / file.name)
  if hf is not None:
    files.write_json(target / 'config.json', hf, sort_keys=True)
  if imported:
    _restate_ends(target, cfg.model)
  else:
    _copy_vocabulary(target, run, cfg)
    stated = hf or {}
    files.write_json(target / GENERATION, {key: stated[key] for key in ids(cfg.model) if key in stated})
  files.write_text(target / card.FILE, card.text(run, cfg, name, family.ARCHITECTURE, step))


def ids(model: dict) -> dict:
  """Returns the special ids of section `model`, as config.json and generation_config.json have them."""
  ends = list(model.get('end_ids') or (1,))
  return dict(pad_token_id=0, bos_token_id=model.get('start_id', 0),
              eos_token_id=ends if ends[1:] else ends[0])


def _restate_ends(target, model):
  """Puts the ids that end texts into the copied configurations, where the run has others than they say."""
  copied = {name: files.read_json(target / name) for name in ('config.json', GENERATION)
            if (target / name).is_file()}
  stated = fields.ids(copied['config.json'], copied.get(GENERATION, {}), model).get('end_ids')
  if list(stated or (1,)) != list(model.get('end_ids') or (1,)):
    for name, values in copied.items():
      ends = ids(model)['eos_token_id']
      files.write_json(target / name, values | dict(eos_token_id=ends), sort_keys=True)


def _copy_vocabulary(target, run, cfg):
  """Copies the files of the run's own vocabulary: none of bytes, and none of one that is lost."""
  try:
    found = pipeline.vocabulary(cfg, found=record.read(run)).files
  except errors.UserError:
    return
  pieces = 'spiece.model' if lookup.encodes_inputs(cfg.model.name) else 'tokenizer.model'
  for name, file in found.items():
    shutil.copyfile(file, target / (pieces if name == vocab.FILE else name))
