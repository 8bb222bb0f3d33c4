"""`stmoe infer` on tiny runs: lines in order, files that appear whole, and its mistakes."""

import io
import json

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import files
from stmoe.answer import infer
from stmoe.checkpoints import checkpoint
from stmoe.cli import infer as command_infer
from stmoe.data import batches as pipeline
from stmoe.data.sources import texts
from stmoe.data.text.objectives import prompted
from stmoe.runs import directory as rundir
from stmoe.train import state as states
from tests.train import tiny_run

pytestmark = pytest.mark.usefixtures('one_device', 'one_size_of_blocks')


def write_run(path, cfg):
  """Writes a run directory with a checkpoint of an untrained model."""
  rundir.make(path)
  files.write_text(path / 'config.json', experiment.to_json(cfg))
  with states.on_mesh(cfg.mesh) as mesh:
    plan = states.blueprint(cfg, mesh)
    saved = checkpoint.Checkpoints(path / 'checkpoints', keep=1)
    saved.save(1, states.init(cfg, plan), dict(step=1), dict(vocab=pipeline.info(cfg)['vocab'].digest))
    saved.close()
  return path


@pytest.fixture(scope='module')
def lm(tmp_path_factory):
  folder = tiny_run.write_corpus(tmp_path_factory.mktemp('infer'))
  return write_run(folder / 'lm', tiny_run.config(folder))


@pytest.mark.slow
def test_lines_come_out_in_order_and_do_not_depend_on_batches(lm, command, tmp_path, monkeypatch):
  prompts = ['1 squared', '', 'a', '22 squared is', '7']
  (tmp_path / 'p.txt').write_text('\n'.join(prompts) + '\n')
  code, out, err = command('infer', lm, tmp_path / 'p.txt', '--length', '5', '--batch-size', '2')
  assert code == 0 and len(out.splitlines()) == 5 and 'step 1' in err, err
  monkeypatch.setattr('sys.stdin', type('In', (), dict(buffer=io.BytesIO((tmp_path / 'p.txt').read_bytes()))))
  assert command('infer', lm, '--length', '5', '--batch-size', '3')[1] == out
  rows = [dict(inputs=text, id=i) for i, text in enumerate(prompts)]
  (tmp_path / 'p.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  code, printed, _ = command('infer', lm, tmp_path / 'p.jsonl', '--length', '5', '--output',
                             tmp_path / 'o.jsonl')
  assert code == 0 and not printed
  made = [json.loads(line) for line in (tmp_path / 'o.jsonl').read_text().splitlines()]
  assert [{key: row[key] for key in ('inputs', 'id')} for row in made] == rows
  escape = lambda text: text.replace('\\', '\\\\').replace('\n', '\\n').replace('\r', '\\r')
  escaped = [escape(row['prediction']) for row in made]
  assert escaped == out.split('\n')[:5]
  beams = command('infer', lm, tmp_path / 'p.txt', '--length', '5', '--config.decode.name=beam',
                  '--config.decode.beams', '1', '--config.decode.length_penalty=0')
  assert beams[1] == out


def test_a_batch_is_given_before_the_next_is_read(lm):
  asked = []
  def prompts():
    for i in range(4):
      asked.append(i)
      yield f'place {i}', str(i), {}
  cfg = rundir.load(lm)
  made = infer.texts(cfg, lm, prompts(), dict(name='greedy'), 3, 2, lambda line: None)
  assert len(next(made)) == 2 and asked == [0, 1]
  assert len(next(made)) == 2 and asked == [0, 1, 2, 3]


def test_a_prompt_in_place_of_a_file_says_where_prompts_are_read():
  with pytest.raises(errors.UserError, match='hello: No such file or directory; wanted: a file of'):
    list(command_infer._lines('hello'))


@pytest.mark.parametrize('text, name, words, says', [
    ('{"inputs": "a"}\n{"inputs": \n', 'x.jsonl', (), 'x.jsonl:2 is not JSON'),
    ('{"inputs": "a"}\n{"input": "b"}\n', 'x.jsonl', (), 'x.jsonl:2 is no object with a text "inputs"'),
    ('{"inputs": "a"}\n{"inputs": "\\ud800"}\n', 'x.jsonl', (), 'x.jsonl:2 holds half a surrogate pair'),
    ('{"inputs": "a"}\n' + '[' * 100_000 + '\n', 'x.jsonl', (), 'x.jsonl:2 is nested too deeply'),
    ('{"inputs": "a", "n": NaN}\n', 'x.jsonl', (), 'x.jsonl:1 holds NaN'),
    ('', 'x.txt', (), 'x.txt is empty'),
    ('a\nb\n' + 'c' * 40 + '\n', 'x.txt', ('--batch-size', 2), 'x.txt:3: the prompt has 41 tokens'),
    ('a\n', 'x.txt', ('--config.decode.name=gredy',), "nearest: 'greedy'"),
    ('a\n', 'x.txt', ('--config.decode.beam=2', '--config.decode.name=beam'), "nearest: 'beams'"),
    ('a\n', 'x.txt', ('--config.decode.beams=4',),
     'decode.beams=4: strategy greedy has no field beams; decode.name=beam has it'),
    ('a\n', 'x.txt', ('--config.decode.name=sample', '--config.decode.temperature=0'),
     'decode.temperature=0.0: expected a number above 0; nearest: decode.name=greedy'),
    ('a\n', 'x.txt', ('--config.decode.name=contrast', '--config.decode.routing_ranks=(99,)'),
     'ranks are different numbers from 0'),
    ('a\n', 'x.txt', ('--length', 0), '--length 0: expected a whole number of at least 1'),
    ('a\n', 'x.txt', ('--batch-size', 0), '--batch-size 0'),
    ('a\n', 'x.txt', ('--step', 7), 'step')], ids=lambda x: str(x)[-20:])
def test_mistakes_are_one_line_and_leave_no_file(lm, mistake, tmp_path, text, name, words, says):
  (tmp_path / name).write_text(text)
  line = mistake('infer', lm, tmp_path / name, '--length', '3', '--output', tmp_path / 'out', *words)
  assert says.replace("'", '') in line.replace("'", ''), line
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_ranks_of_contrast_count_from_0():
  cfg, _ = experiment.load('lm/quickstart:smoke', [])
  words = ('--config.decode.name=contrast', '--config.decode.routing_ranks=0',
           '--config.decode.strong_ranks=0,1')
  decode = command_infer.strategy(cfg, words)
  assert (decode['routing_ranks'], decode['strong_ranks']) == ((0,), (0, 1))
  with pytest.raises(errors.UserError, match='routing_ranks=.*at least one'):
    command_infer.strategy(cfg, [words[0], '--config.decode.routing_ranks=()'])


def test_the_longest_prompt_of_a_file_is_named_before_all_is_compiled(lm, mistake, tmp_path, monkeypatch):
  monkeypatch.setattr(infer.generate, 'make', None)
  (tmp_path / 'x.txt').write_text('a\n' + 'c' * 40 + '\n' + 'd' * 50 + '\n' + 'e' * 45 + '\n')
  length = rundir.load(lm).data.length
  says = f'the most of {{}} prompts that are too long; the model was trained with data.length={length}'
  line = mistake('infer', lm, tmp_path / 'x.txt')
  assert 'x.txt:3: the prompt has 51 tokens, ' + says.format(3) + '; shorten' in line
  assert line.endswith('or set --config.data.length=51')
  line = mistake('infer', lm, tmp_path / 'x.txt', '--config.data.length=42')     # is not the trained one
  assert 'x.txt:3: the prompt has 51 tokens, ' + says.format(2) + ', and data.length=42 now; shorten' in line


def test_a_conversation_without_a_template_is_refused_before_texts_are_announced(lm, command, tmp_path,
                                                                                 monkeypatch):
  (tmp_path / 'x.jsonl').write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
  lines = io.BytesIO((tmp_path / 'x.jsonl').read_bytes())
  monkeypatch.setattr('sys.stdin', type('In', (), dict(buffer=lines)))
  for words in ([tmp_path / 'x.jsonl'], ['--jsonl']):
    code, _, err = command('infer', lm, *words, '--chat')
    assert code == 2 and ':1: ' in err and 'template' in err and 'generating' not in err, err


def test_a_run_that_is_not_there_is_told_before_a_file_that_is_not_there(lm, mistake):
  assert f"is called '{lm}x'; nearest: {lm}" in mistake('infer', f'{lm}x', 'nowhere.txt')


def test_prompts_may_be_arguments(lm, command, mistake, monkeypatch):
  echo = lambda cfg, path, prompts, *given, **more: [[(fields, text + '!') for _, text, fields in prompts]]
  monkeypatch.setattr(infer, 'texts', echo)
  assert command('infer', lm, '--prompt', 'a b', '--prompt=-c')[1] == 'a b!\n-c!\n'
  assert '--prompt and the file x.txt do not go together' in mistake('infer', lm, 'x.txt', '--prompt', 'a')


def test_half_a_surrogate_pair_is_no_prompt(lm):
  cfg = rundir.load(lm)
  with pytest.raises(errors.UserError, match='prompt 1: the prompt holds half a surrogate pair'):
    list(infer.texts(cfg, lm, [('prompt 1', 'a\ud800', {})], dict(name='greedy'), 3, 2, lambda line: None))


def test_texts_past_the_trained_length_are_said(lm):
  cfg = rundir.load(lm)

  length = cfg.data.length - 1

  def notes(*prompts):
    asked, said = [('', text, {}) for text in prompts], []
    list(infer.texts(cfg, lm, asked, dict(name='greedy'), length, 1, said.append))
    return [line for line in said if line.startswith('note:')]
  assert not notes('a')                  # read are id 0, the prompt, and all of the text but its last token
  [note] = notes('ab', 'ab')             # said once
  assert f'reach token {length + 2}, past data.length={length + 1}' in note


def test_the_prompt_of_a_fine_tuned_decoder_is_what_it_was_trained_on(lm):
  cfg = rundir.load(lm)
  vocabulary = pipeline.info(cfg)['vocab']
  cfg.data.objective = 'prompted'
  rower = texts.Rower(prompted.Prompted(vocabulary, length=16), vocabulary)
  batch = rower.batch([('ab', 'c')], 1)
  prompt = infer.tokens(cfg, vocabulary, '', 'ab')
  assert batch['decoder_input_tokens'][0, :len(prompt)].tolist() == prompt
  assert batch['decoder_loss_weights'][0].tolist().index(1) == len(prompt) - 1   # of the answer


def test_other_mistakes(lm, mistake, tmp_path):
  assert 'No such file' in mistake('infer', lm, tmp_path / 'none.txt')
  (tmp_path / 'x.txt').write_bytes(b'a\n\xff\n')
  assert 'x.txt:2 is not UTF-8' in mistake('infer', lm, tmp_path / 'x.txt')
  assert 'no directory' in mistake('infer', lm, tmp_path / 'x.txt', '--output', tmp_path / 'no' / 'o')


def test_prompts_of_an_encoder_end_with_eos_and_those_of_a_prefix_are_seen_whole(lm):
  cfg = rundir.load(lm)
  vocabulary = pipeline.info(cfg)['vocab']
  assert infer.tokens(cfg, vocabulary, '', 'a') == [0, 100]
  cfg.data.objective = 'prefix_lm'
  batch = infer.prompt_batch(cfg, [[0, 100], [0]], 3)
  np.testing.assert_array_equal(batch['decoder_causal_attention'], [[1, 1, 0], [1, 0, 0]])
  np.testing.assert_array_equal(batch['decoder_positions'], [[0, 1, 0], [0, 0, 0]])
  with cfg.unlocked():
    cfg.data.inputs_length = 8
  assert infer.tokens(cfg, vocabulary, '', 'a') == [100, 1]
  assert set(infer.prompt_batch(cfg, [[100, 1]], 4)) >= {'encoder_input_tokens', 'encoder_segment_ids'}


def test_what_cannot_be_read_is_not_said_of_the_output(tmp_path):
  with pytest.raises(FileNotFoundError, match='elsewhere'), command_infer._writer(tmp_path / 'out'):
    raise FileNotFoundError(2, 'No such file or directory', 'elsewhere')
  with pytest.raises(errors.UserError, match='--output .*no/out: No such file'):
    with command_infer._writer(tmp_path / 'no' / 'out'):
      pass
  assert list(tmp_path.iterdir()) == []


def test_lines_say_what_the_source_of_data_gives_of_rows(monkeypatch):
  monkeypatch.setattr(infer, '_ids', lambda *asked: [1])
  cfg = ml_collections.ConfigDict(dict(data=dict(source='customized_digits', length=9)))
  asked = [(f'x:{n}', [1], {'inputs': 'a', 'given/user': n}) for n in (0, 1)]
  batch = infer.given(cfg, asked, 3)
  assert list(batch) == ['given/user'] and batch['given/user'].dtype == np.int32
  np.testing.assert_array_equal(batch['given/user'], [0, 1, 1])
  assert not infer.given(cfg, [('x:1', [1], {})], 1)
  for fields, says in (({}, r"x:3 has no 'given/user', which other lines have; wanted: int32\[\]"),
                       ({'given/user': 0.5}, r'x:3: given/user=0.5; wanted: int32\[\]'),
                       ({'given/user': [1]}, r'x:3: given/user=\[1\]; wanted'),
                       ({'given/user': 2**40}, r'x:3: given/user=1099511627776; wanted'),
                       ({'given/usr': 1}, r"x:3: .* has no 'given/usr'; nearest: given/user")):
    with pytest.raises(errors.UserError, match=says):
      infer.given(cfg, [*asked, ('x:3', [1], fields)], 4)
    with pytest.raises(errors.UserError, match=says):                # before a compile
      prompts = [(place, 'a', more) for place, _, more in asked] + [('x:3', 'a', fields)]
      infer._tokenised(cfg, None, prompts, cfg)
