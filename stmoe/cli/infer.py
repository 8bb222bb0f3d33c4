"""Generates a text for every line of a file or of standard input, from the newest checkpoint of a run.

stmoe infer runs/try prompts.txt                              a line of text in, a line of text out
stmoe infer runs/try --length 200 < prompts.txt
stmoe infer runs/try --prompt 'import os' --prompt 'def f(x):'
stmoe infer runs/try data.jsonl --output predictions.jsonl    lines {"inputs": ...}; adds "prediction"
stmoe infer runs/try prompts.txt --config.decode.name=beam --config.decode.beams=4
stmoe infer DOWNLOADED                                        a prompt a line; texts appear as they are made
stmoe infer runs/imported chats.jsonl --chat                  lines {"messages": [{"role": "user", ...}]}
stmoe infer DOWNLOADED --source-language eng_Latn --target-language fra_Latn      translations (NLLB)
strategies: greedy, sample (temperature, top_k, top_p), beam (beams, length_penalty), contrast (alpha, beta,
routing_ranks), rewire (steps, rate, interval, confident); --config.FIELD of the run, too.

Lines come out in order, a batch as soon as it is done. In plain text a line end inside a text is written
as \\n. An --output file appears when all is done, or not at all. What routers are given of rows, an object
may have: {"inputs": ..., "given/domain": 1}. With --chat, prompts are written by the chat template that came
with the model, which runs in Jinja's sandbox. A line of plain text is what a user says.
"""

import contextlib
import itertools
import json
import os
import pathlib
import sys

import ml_collections

from stmoe import errors
from stmoe import experiment
from stmoe import files
from stmoe import ranges
from stmoe import sections
from stmoe import silence
from stmoe.derive import downloaded
from stmoe.runs import directory as rundir

COMPUTES = True


def add_arguments(parser):
  parser.add_argument('run', metavar='RUN', help='a run directory, a downloaded folder, or an experiment')
  parser.add_argument('file', metavar='FILE', nargs='?', default='-', help='prompts; default: standard input')
  parser.add_argument('--prompt', metavar='TEXT', action='append', help='a prompt instead of a FILE; several')
  parser.add_argument('--output', metavar='OUT', type=pathlib.Path, help='a file instead of standard output')
  parser.add_argument('--jsonl', action='store_true', help='lines are JSON objects; implied by FILE.jsonl')
  parser.add_argument('--chat', action='store_true', help='prompts are conversations; see above')
  for side, does in (('source', 'that prompts are in'), ('target', 'to translate into')):
    parser.add_argument(f'--{side}-language', metavar='TOKEN', help=f'the language {does}: a special token '
                        'of the vocabulary; default: as the files of the model say')
  parser.add_argument('--length', type=ranges.Count,
                      help='most tokens of a text; default: data.targets_length, or 64')
  parser.add_argument('--record', metavar='FILE', type=pathlib.Path,
                      help='also record the experts of all tokens, for --replay (see stmoe record)')
  parser.add_argument('--batch-size', type=ranges.Count, help='prompts at once (default: 8)')
  parser.add_argument('--stream', action='store_true',
                      help='write texts token by token, one after the other; so it is at a terminal')
  parser.add_argument('--step', type=ranges.Natural, help='which checkpoint; default: the newest')
  parser.set_defaults(overrides=())


def run(args):
  jsonl = args.jsonl or args.file.endswith('.jsonl')
  _check(args, jsonl)
  named = experiment.run_directory(args.run)
  lines = args.prompt or (_lines('-') if args.file == '-' else list(_lines(args.file)))
  path = downloaded.resolved(named)
  cfg = rundir.opened(path, args.step)
  decode = strategy(cfg, args.overrides)
  sections.present(cfg)
  from stmoe.answer import infer
  stream = args.stream or _at_a_terminal(args, decode)
  where = '--prompt' if args.prompt else 'standard input' if args.file == '-' else args.file
  prompts = _begun(infer.read(lines, where, jsonl, args.chat), args.prompt or args.file != '-', where)
  length = cfg.data.get('targets_length', 64) if args.length is None else args.length
  say = lambda line: print(line, file=sys.stderr)
  watch = _recorder(cfg, path, args.record, say)
  tell = (lambda part: print(_on_a_line(part), end='', flush=True)) if stream else None
  made = infer.texts(cfg, path, prompts, decode, length, args.batch_size or 8, say, args.step, watch=watch,
                     tell=tell, source=args.source_language, target=args.target_language)
  as_json = lambda fields, text: json.dumps(fields | dict(prediction=text), ensure_ascii=False)
  # What is streamed is there but for the end of its line.
  line = as_json if jsonl else lambda fields, text: '' if stream else _on_a_line(text)
  _write(args.output, made, line, say)
  if watch:
    watch.close()


def _check(args, jsonl):
  """Raises UserError for options that do not go together, and for files that cannot be written."""
  if args.prompt and args.file != '-':
    raise errors.UserError(f'--prompt and the file {args.file} do not go together')
  if args.stream and (jsonl or args.output or args.batch_size):
    with_it = '--output' if args.output else '--batch-size' if args.batch_size else 'JSON lines'
    raise errors.UserError(f'--stream and {with_it} do not go together')
  for flag, file in (('--output', args.output), ('--record', args.record)):
    if file:
      files.check_place(flag, file)


def _write(path, made, line, say):
  """Writes `line` of every (fields, text) in the batches `made`, to file `path` or to standard output."""
  said, count, empty = silence.telling(say), 0, 0
  with _writer(path) as write:
    for batch in made:
      count += len(batch)
      said(f'{count:,} text{"s" * (count != 1)}')
      for fields, text in batch:
        empty += not text
        write(line(fields, text))
  if empty:
    say(f'note: {empty} of {count} texts are empty, the model ended them at once')


def _begun(prompts, whole, where):
  """`prompts` as a list where they are known as a `whole`: a wrong line is found before all else."""
  read = list(prompts if whole else itertools.islice(prompts, 1))
  if not read:
    raise errors.UserError(f'{where} is empty: no line, no text')
  return read if whole else itertools.chain(read, prompts)


def _at_a_terminal(args, decode):
  """Whether somebody types prompts and reads the texts, one after the other."""
  from stmoe.decode import generate
  if args.file != '-' or args.jsonl or args.output or args.batch_size:
    return False
  return (args.prompt or sys.stdin.isatty()) and sys.stdout.isatty() and generate.tells(decode)


def _on_a_line(text):
  """`text` without line ends, of which each is written as it is in code."""
  return text.replace('\\', '\\\\').replace('\n', '\\n').replace('\r', '\\r')


def _recorder(cfg, path, file, say):
  """What records the routing of generated texts into `file`, or None."""
  if file is None:
    return None
  from stmoe.answer import recorder
  return recorder.Texts(file, cfg, path, say)


def strategy(cfg, overrides):
  """Returns section `decode`, name and fields, of `cfg` after `overrides`; other overrides change `cfg`.

  A strategy with another name begins with its own defaults.
  """
  decode = ml_collections.ConfigDict(dict(decode=cfg.get('decode') or dict(name='greedy')))
  decode_fields, other_overrides = {}, []
  for override in overrides:
    field, equals, text = override.removeprefix('--').removeprefix('config.').partition('=')
    if field.startswith('decode.') and equals:
      decode_fields[field.removeprefix('decode.')] = text
    else:
      other_overrides.append(override)
  if decode_fields.get('name', decode.decode.name) != decode.decode.name:
    decode.decode = dict(name=decode_fields['name'])
  for key, text in decode_fields.items():
    kind = sections.range_of(decode, f'decode.{key}')
    with decode.ignore_type():
      decode.decode[key] = text if kind is None else kind.typed(f'config.decode.{key}', text)
  sections.check(decode)
  experiment.override(cfg, other_overrides, whole=False)
  return decode.decode.to_dict()


def _lines(name):
  """Yields the lines of file `name`, '-' being standard input, without their ends."""
  try:
    with contextlib.nullcontext(sys.stdin.buffer) if name == '-' else open(name, 'rb') as file:
      for number, line in enumerate(file, 1):
        try:
          yield line.decode().removesuffix('\n').removesuffix('\r')
        except UnicodeDecodeError as error:
          raise errors.UserError(f'{name}:{number} is not UTF-8: {error}') from None
  except OSError as error:
    raise errors.UserError(f'{name}: {error.strerror}; wanted: a file of prompts, one a line, prompts on '
                           'standard input, or --prompt TEXT') from error


@contextlib.contextmanager
def _writer(path):
  """Gives a function that writes a line; a file at `path` appears only when all went well."""
  if path is None:
    yield lambda line: print(line, flush=True)
    return
  part = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    file = open(part, 'w', encoding='utf-8')
  except OSError as error:
    raise errors.UserError(f'--output {path}: {error.strerror}') from error
  try:
    with file:                           # an error in here may be of any file
      yield lambda line: print(line, file=file)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)
