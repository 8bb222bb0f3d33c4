"""Measures what rewiring is worth in the trained runs of a folder: a line of RUN/rewiring.jsonl for a case.

  python -m stmoe.experiments.rewiring.measure runs/rewiring           what is not there yet
  python -m stmoe.experiments.rewiring.measure runs/rewiring FOLDER    then FOLDER/measured.csv of all cases

A case is a text (texts.py) and a setting. Half of each row is the prompt.
"""

import pathlib
import sys

from stmoe import experiment
from stmoe import files
from stmoe.answer import rewiring
from stmoe.experiments.rewiring import texts
from stmoe.experiments import measuring
from stmoe.runs import directory as rundir

FILE, TABLE = 'rewiring.jsonl', 'measured.csv'
ROWS = 256
# Fields of the strategy: its defaults are the sizes of the paper as far as they are known (unverified).
SETTINGS = {
    'usual': {},
    'more_steps': dict(steps=20),
    'all_routers': dict(confident=1.0),
}


def recorded(run):
  """Returns dict (text, setting) -> columns of what was measured in the directory `run`."""
  path = pathlib.Path(run) / FILE
  lines = files.read_lines(path) if path.is_file() else ()
  return {(line['text'], line['setting']): line['found'] for line in lines}


def columns(found):
  """Returns the numbers of a measurement by name: `rewiring.measure` without its dicts.

  changed: the share of a token's experts that are others, mean over layers; cost: seconds of adapting over
  seconds of reading the whole rows once.
  """
  of_layers = [found['changed'][name] / found['choices'][name] for name in found['changed']]
  bits = {f'{part}/{way}': value for part in rewiring.PARTS for way, value in found[part].items()}
  return bits | dict(
      rows=found['rows'], gain=found['gain'], gain_error=found['gain_error'],
      improved_prompts=found['improved']['prompts'], improved=found['improved']['texts'],
      changed=sum(of_layers) / len(of_layers), largest=max(found['largest'].values()),
      cost=found['seconds']['adapt'] / found['seconds']['read'])


def measure(run, name, path, setting):
  """Measures a case and appends its line; returns the columns."""
  cfg = rundir.opened(run)
  experiment.override(cfg, ['data.task=text', f'data.files={path}', 'data.eval_split=train'])
  found = columns(rewiring.measure(run, dict(name='rewire', **SETTINGS[setting]), cfg.data.length // 2, ROWS,
                                   cfg, say=lambda line: None))
  files.append_line(pathlib.Path(run) / FILE, files.plain(dict(text=name, setting=setting, found=found)))
  return found


def table(runs):
  """Yields a dict for every case of the directories `runs`."""
  for run in runs:
    for (text, setting), found in recorded(run).items():
      yield dict(name=run.name.rpartition('-')[0], seed=rundir.opened(run).seed, text=text,
                 setting=setting) | found


def main(words):
  """Measures what is missing in the folder that `words` name; returns the exit code."""
  return measuring.run(words, 'rewiring', complete, table, TABLE)


def complete(folder, runs):
  """Measures the cases of the directories `runs` that are not there yet; texts go into `folder`."""
  for name, path in texts.write(folder / 'texts').items():
    for run, setting in ((run, setting) for run in runs for setting in SETTINGS):
      if (name, setting) not in recorded(run):
        found = measure(run, name, path, setting)
        print(f'{run.name} {name} {setting}: gain {found["gain"]:+.4f} bits per byte', flush=True)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
