"""Where tokens go: edges to tokens by hand, and the trace of real models."""

import dataclasses
import html.parser
import pathlib

from flax import nnx
import jax
import numpy as np
import pytest

from stmoe import lookup
from stmoe import modules
from stmoe.analysis.routing import choices as routing
from stmoe.analysis.routing import spans
from stmoe.analysis.routing import text as routing_view
from stmoe.core import hidden
from stmoe.core import tables
from stmoe.data.text import pack
from stmoe.data.text import vocab
from stmoe.routers import wrappers

LENGTH, ROWS = 16, 2


def test_edges_become_choices_of_tokens():
  # Two groups of three tokens are the rows of a batch [2,3]; expert 2 = E is a dead edge.
  token = np.array([[0, 1, 2, 0], [0, 1, 1, 2]])
  expert = np.array([[1, 0, 2, 0], [1, 1, 0, 0]])
  weight = np.array([[0.3, 0.9, 0.8, 0.7], [0.5, 0.2, 0.6, 0.4]])
  mask = np.array([[True, True, True], [True, True, False]])
  found = routing.per_token(token, expert, weight, np.arange(6).reshape(2, 3), mask, num_experts=2)
  assert found == [[[(0, 0.7), (1, 0.3)], [(0, 0.9)], []],           # token 2 was dropped
                   [[(1, 0.5)], [(0, 0.6), (1, 0.2)], []]]           # the last token is padding


def test_a_negative_weight_may_be_the_largest():
  token, expert, weight = np.array([[0, 0]]), np.array([[0, 1]]), np.array([[0.3, -0.7]])
  found = routing.per_token(token, expert, weight, np.zeros((1, 1), int), np.ones((1, 1)) > 0, num_experts=2)
  assert found == [[[(1, -0.7), (0, 0.3)]]]
  sample = routing_view.Sample(pieces=['a'], taken=found[0], num_experts=2, table=[])
  assert '--weight:1.00' in spans.to_html(sample)


def test_groups_longer_than_a_row_keep_the_order_of_tokens():
  token, expert, weight = np.array([[3, 0]]), np.array([[1, 0]]), np.ones((1, 2))
  found = routing.per_token(token, expert, weight, np.arange(4)[None], np.ones((2, 2), bool), num_experts=2)
  assert found == [[[(0, 1.0)], []], [[], [(1, 1.0)]]]


def test_tokens_that_a_block_picked_keep_their_places():
  token, expert, weight = np.array([[0, 1]]), np.array([[1, 0]]), np.ones((1, 2))
  found = routing.per_token(token, expert, weight, np.array([[2, 3]]), np.ones((2, 2), bool), num_experts=2)
  assert found == [[[], []], [[(1, 1.0)], [(0, 1.0)]]]


def test_specialisation_ranks_what_an_expert_gets_more_than_its_share():
  # Expert 0 gets all four of token 7 and half of token 5; expert 1 gets the other four 5s.
  ids = np.array([[7, 7, 7, 7, 5, 5, 5, 5, 5, 5, 5, 5]])
  experts = [[[(0, 1.0)]] * 8 + [[(1, 1.0)]] * 4]
  (share, best), (_, other) = routing.specialisation(routing.Choices('l', experts, 2), ids)
  assert share == pytest.approx(8 / 12)
  assert best == [(7, 4, pytest.approx(4 / (8 * 4 / 12)))]           # 5 comes less often than by chance
  assert other == [(5, 4, pytest.approx(4 / (4 * 8 / 12)))]


def _model(router, scan_layers=True):
  fields = dict(name='lm', vocab_size=259, d_model=16, num_heads=2, head_dim=8, layers=(('m', 2),),
                scan_layers=scan_layers)
  blocks = dict(m=dict(layer='moe', executor='einsum', router=router, experts=dict(name='mlp', d_ff=32)))
  return lookup.recipe('model', fields)(blocks=blocks, rngs=nnx.Rngs(0))


@pytest.fixture(scope='module')
def batch():
  filled = pack.empty(dict(decoder=LENGTH), ROWS)
  [ids] = vocab.Bytes().encode(['def f(x): return x + 1\n#'])
  for row in range(ROWS):
    pack.fill(filled, row, [dict(decoder=ids[row * LENGTH:(row + 1) * LENGTH])])
  return filled                                                      # 24 real tokens, 8 of them in row 1


_forward = jax.jit(lambda model, batch: model(batch))


def test_choices_of_an_unrolled_top_2_model_are_what_its_routers_loaded(batch):
  model = _model(dict(name='st_moe', num_experts=4, capacity_factor=(None, None)), scan_layers=False)
  _, aux = _forward(model, batch)
  found = routing.choices(model, batch)
  assert list(found) == list(aux) == ['decoder_00', 'decoder_01']
  real = (batch['decoder_segment_ids'].ravel() > 0).tolist()
  for layer, chosen in found.items():
    flat = [taken for row in chosen.experts for taken in row]
    counts = np.bincount([e for taken in flat for e, _ in taken], minlength=4)
    np.testing.assert_array_equal(counts, aux[layer].load)
    assert max(map(len, flat)) == 2
    assert [len(taken) > 0 for taken in flat] == real


def test_trace_of_a_scanned_model_changes_nothing_and_shows_drops(batch):
  model = _model(dict(name='switch', num_experts=4, capacity_factor=(0.25, 0.25), min_capacity=1))
  logits, aux = _forward(model, batch)
  traced, traced_aux = _forward(routing.trace(model), batch)
  assert not any(isinstance(m, wrappers.Wrapper) for _, m in nnx.iter_modules(model))
  np.testing.assert_allclose(logits, traced, rtol=1e-6, atol=1e-6)
  assert 'edges' in traced_aux['decoder_01'].records and not aux['decoder_01'].records
  found, before = routing.choices(model, batch), routing._reported._cache_size()
  routing.choices(model, {name: a.copy() for name, a in batch.items()})
  assert routing._reported._cache_size() == before                   # compiled once for all batches
  for layer, chosen in found.items():
    # One slot per expert and row: at most 8 of the 24 real tokens find one.
    taken = sum(len(t) for row in chosen.experts for t in row)
    assert 0 < taken <= 8
    assert float(aux[layer].metrics['drop_frac']) == pytest.approx(1 - taken / 24)


def test_a_layer_of_several_routers_shows_each_of_them(batch):
  fields = dict(name='lm', vocab_size=259, d_model=16, num_heads=2, head_dim=8, layers=(('m', 1),))
  block = dict(layer='multihash', num_hashes=2, executor='einsum', experts=dict(name='linear', d_ff=8),
               router=dict(name='hash', num_experts=4, vocab_size=259))
  model = lookup.recipe('model', fields)(blocks=dict(m=block), rngs=nnx.Rngs(0))
  found = routing.choices(model, batch)
  assert list(found) == ['decoder_00.0', 'decoder_00.1']
  for m, chosen in enumerate(found.values()):
    table = tables.random_table(259, 4, 42 + m)
    assert chosen.num_experts == 4
    assert chosen.experts == [[[(table[i], 1.0)] if real else [] for i, real in zip(*row)] for row in zip(
        batch['decoder_input_tokens'], batch['decoder_segment_ids'])]


class _Spans(html.parser.HTMLParser):
  """Collects the spans of routed text: (attributes, text)."""

  def __init__(self):
    super().__init__()
    self.spans = []

  def handle_starttag(self, tag, attributes):
    if tag == 'span':
      self.spans.append([dict(attributes), ''])

  def handle_data(self, data):
    if self.spans:
      self.spans[-1][1] += data


def _sample():
  taken = [[(1, 0.9), (0, 0.1)], [(0, 1.0)], [], None]
  return routing_view.Sample(pieces=['<b>', '"\n', 'x', ''], taken=taken, num_experts=2,
                             table=[(0.5, []), (0.5, [])])


def test_html_has_one_escaped_span_per_token_in_the_colours_of_its_experts():
  reader = _Spans()
  reader.feed(spans.to_html(_sample()))
  (first, text), (second, broken), (third, dropped), (fourth, end) = reader.spans
  tints = routing_view.colours(2)
  assert text == '<b>' and f'--first:{tints[1]};--weight:0.90' in first['style'] and first['data-e'] == '1 0'
  assert f'--second:{tints[0]}' in first['style']
  assert 'expert 1 (0.90), expert 0 (0.10)' in first['title']
  assert broken == '"↵\n' and '--second' not in second['style']
  assert dropped == 'x' and third['class'] == 'none' and 'dropped' in third['title']
  assert end == '·' and fourth['class'] == 'unread' and 'not read' in fourth['title']


def test_experts_without_a_token_and_rare_ones_are_told_apart():
  class _Chips(_Spans):
    def handle_starttag(self, tag, attributes):
      if tag == 'button':
        self.spans.append([dict(attributes), ''])
  reader = _Chips()
  reader.feed(spans.chips([0.97, 0.03, 0.0]))
  assert [(chip['class'], text) for chip, text in reader.spans] == [
      ('', '0: 97%'), ('rare', '1: 3%'), ('dead', '2: 0%')]
  assert 'class="routed numbered"' in spans.to_html(dataclasses.replace(_sample(), num_experts=9))


def test_what_was_dropped_and_where_tokens_flow():
  first = _sample()
  second = dataclasses.replace(first, num_experts=3, taken=[[(2, 1.0)], [], [], None])
  assert spans.dropped(second) == [('"\n', 1), ('x', 1)]
  assert spans.flow(first, second).tolist() == [[0, 0, 0], [0, 0, 1]]
  drawn = spans.flow_html(spans.flow(first, second))
  assert drawn.count('<rect') == 6 and 'expert 1 to expert 2: 100%' in drawn


def test_lines_wrap_at_columns_and_at_line_ends():
  assert routing_view.layout(['abc', 'de\n', 'e', 'fgh\n', 'i'], 4) == [
      (0, 0, 'abc'), (1, 0, 'de↵'), (2, 0, 'e'), (2, 1, 'fgh↵'), (3, 0, 'i')]


def test_figure_has_one_panel_per_layer():
  made = routing_view.figure({'decoder_01': _sample(), 'decoder_03': _sample()})
  assert [ax.get_title(loc='left') for ax in made.axes] == ['decoder_01: 2 experts', 'decoder_03: 2 experts']


@pytest.mark.parametrize('num_experts', [8, 64, 512])
def test_colours_differ_and_are_light_enough_for_black_text(num_experts):
  found = routing_view.colours(num_experts)
  assert len(set(found)) == num_experts
  for colour in found:
    r, g, b = (int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5))
    luminance = 0.2126 * r ** 2.2 + 0.7152 * g ** 2.2 + 0.0722 * b ** 2.2
    assert (luminance + 0.05) / 0.05 > 7                             # WCAG AAA contrast with black


def test_texts_name_what_has_no_text():
  assert routing_view.texts(vocab.Bytes(), [ord('a') + 3, 1, 0, 0xC3 + 3]) == ['a', '■', '·', '·']


def test_sample_reads_on_over_rows_and_leaves_padding_out(batch):
  chosen = {'decoder_01': routing.Choices('decoder_01', [[[(0, 1.0)]] * LENGTH] * ROWS, 1)}
  seen = routing_view.sample(chosen, batch, vocab.Bytes())['decoder_01']
  assert ''.join(seen.pieces) == 'def f(x): return x + 1\n#'
  # What a row predicts last, 'n' and '#', it never reads.
  assert [seen.pieces[i] for i, taken in enumerate(seen.taken) if taken is None] == ['n', '#']
  assert len(seen.taken) == len(seen.pieces) == 24


def test_a_token_is_shown_with_the_experts_of_the_place_where_it_is_read(batch):
  experts = [[[(place, 1.0)] for place in range(LENGTH)]] * ROWS
  chosen = {'decoder_01': routing.Choices('decoder_01', experts, LENGTH)}
  seen = routing_view.sample(chosen, batch, vocab.Bytes())['decoder_01']
  for token, taken in enumerate(seen.taken):
    for place, _ in taken or ():
      row = token // LENGTH
      assert chr(batch['decoder_input_tokens'][row, place] - 3) == seen.pieces[token]


TEXTS = ['trees · “ééé”\n\tdef f(x):\r\n', 'a ▁b  𝔘nicode \ufffd ', 'plain words of a text', '■ and ends']


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
  """A vocabulary of pieces with bytes for what it does not know."""
  path = tmp_path_factory.mktemp('vocab') / 'pieces.model'
  path.write_bytes(vocab.train(['some words of a text, def f(x): return x'] * 50, 300))
  return vocab.Pieces(path)


@pytest.mark.parametrize('kind', ['bytes', 'pieces', 'dummy prefix'])
@pytest.mark.parametrize('text', TEXTS)
def test_pieces_together_are_the_text(kind, text, learned):
  path = pathlib.Path(__file__).parents[2] / 'data' / 'sentencepiece' / 'seqio_test_26.model'
  used = dict(bytes=vocab.Bytes(), pieces=learned).get(kind) or vocab.Pieces(path)
  [ids] = used.encode([text])
  found = routing_view.pieces(used, [*ids.tolist(), used.eos_id, *ids.tolist()])
  whole = used.decode(ids)
  assert len(found) == 2 * len(ids) + 1 and ''.join(found) == f'{whole}■{whole}'
  if kind == 'bytes':
    assert whole == text


def test_windows_of_an_encoder_are_read_whole():
  filled = pack.empty(dict(encoder=4, decoder=3), 1)
  pack.fill(filled, 0, [dict(encoder=[100, 101, 1], decoder=[102, 1])])
  chosen = {'encoder_01': routing.Choices('encoder_01', [[[(0, 1.0)]] * 4], 1),
            'decoder_01': routing.Choices('decoder_01', [[[(0, 1.0)]] * 3], 1)}
  seen = routing_view.sample(chosen, filled, vocab.Bytes())
  assert seen['encoder_01'].pieces == ['a', 'b', '■'] and None not in seen['encoder_01'].taken
  assert seen['decoder_01'].pieces == ['c', '■'] and seen['decoder_01'].taken == [[(0, 1.0)], None]


def test_layers_that_route_channels_have_no_choices_of_tokens(batch):
  inner = dict(name='moe', executor='einsum', experts=dict(name='feature'),
               router=dict(name='smlp_deterministic', num_experts=4))
  blocks = dict(s=dict(layer='gmlp', attention=False, length=LENGTH, d_ff=2 * LENGTH, inner=inner),
                m=dict(layer='moe', attention=False, executor='einsum', experts=dict(name='mlp', d_ff=32),
                       router=dict(name='st_moe', num_experts=4, capacity_factor=(None, None))))
  fields = dict(name='mlp_lm', vocab_size=259, d_model=16, layers=(('sm', 1),))
  model = lookup.recipe('model', fields)(blocks=blocks, rngs=nnx.Rngs(0))
  found = routing.choices(model, batch)                              # as many channels as tokens
  assert [*found] == ['decoder_01'] and sum(map(len, sum(found['decoder_01'].experts, []))) == 2 * 24


def test_of_a_block_that_some_tokens_pass_these_have_choices():
  block = dict(layer='moe', executor='einsum', experts=dict(name='mlp', d_ff=32), group_size=4,
               router=dict(name='st_moe', num_experts=4, capacity_factor=(None, None)),
               around=dict(name='mixture_of_depths', share=0.25))
  fields = dict(name='t5', vocab_size=259, d_model=16, num_heads=2, head_dim=8, encoder=(('dm', 1),),
                decoder=(('d', 1),))
  blocks = dict(d=dict(layer='dense', d_ff=32), m=block)
  model = lookup.recipe('model', fields)(blocks=blocks, rngs=nnx.Rngs(0))
  batch = pack.empty(dict(encoder=16, decoder=4), 2)
  for row in range(2):
    pack.fill(batch, row, [dict(encoder=[*range(100 + row, 116 + row)], decoder=[102, 1])])
  states = hidden.apart(_forward(modules.showing(model, ['encoder_00', 'encoder_01']), batch)[1])[1]
  passed = np.any(states['encoder_01'].x != states['encoder_00'].x, axis=-1)
  chosen = routing.choices(model, batch)['encoder_01']
  assert passed.sum() == 8
  assert [[len(taken) > 0 for taken in row] for row in chosen.experts] == passed.tolist()


def test_layers_that_mix_all_tokens_have_no_choices(batch):
  assert routing.choices(_model(dict(name='soft_moe', num_experts=4, allow_causal=True)), batch) == {}
