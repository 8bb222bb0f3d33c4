"""Hash layers on examples worked by hand: what is hashed, which tables there are, what is refused."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import router_state as state
from stmoe.core import contract
from stmoe.core import tables as tables_lib
from stmoe.parts import stack
from stmoe.routers import hash as router

V, K, D = 10, 3, 4
TABLE = [0, 1, 2, 0, 1, 2, 0, 1, 2, 2]
IDS = np.array([[4, 9, 5, 0], [7, 3, 8, 6]])
POSITIONS = np.array([[0, 1, 0, 1], [2, 3, 0, 1]])                   # documents cross rows; one starts inside


def make(**fields):
  """A router of V ids and K experts."""
  return router.Hash(D, **dict(dict(num_experts=K, vocab_size=V), **fields), rngs=nnx.Rngs(0))


def fixed(**fields):
  """A router with TABLE for its table, if it has one."""
  made = make(**fields)
  if made.table is not None:
    made.table[...] = jnp.array(TABLE)
  return made


def context(ids=IDS, positions=POSITIONS, mask=None, **fields):
  mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask)
  return contract.Context(mask=jnp.asarray(mask), ids=jnp.asarray(ids), positions=jnp.asarray(positions),
                          segments=jnp.asarray(mask.astype(np.int32)), step=jnp.int32(0),
                          tokens=jnp.float32(mask.sum()), **dict(dict(vocab_size=V), **fields))


@jax.jit
def call(made, ctx):
  return made(jnp.zeros((*ctx.ids.shape, D)), ctx, {})


# Looked up in TABLE: the tokens, those before (0 first in a document), those after (0 last in a document).
# bigram: x mod 3 + (1,000,003 mod 3 = 1) * earlier mod 3, mod 3.
BUCKETS = dict(
    random=[[1, 2, 2, 0], [1, 0, 2, 0]],
    previous=[[0, 1, 0, 2], [0, 1, 0, 2]],
    future=[[2, 0, 0, 1], [0, 0, 0, 0]],
    position=[[0, 1, 0, 1], [2, 0, 0, 1]],
    bigram=[[1, 1, 2, 2], [1, 1, 2, 2]],
    fresh=[[1, 2, 2, 0], [1, 0, 2, 0]],                              # without a key, the table
)


@pytest.mark.parametrize('kind', BUCKETS)
def test_bucket_of_every_token(kind):
  routed = call(fixed(kind=kind), context())
  a = routed.assignment
  np.testing.assert_array_equal(a.expert, BUCKETS[kind])
  assert a.capacity == a.num_tokens == 4 and a.choices == 1 and bool((a.weight == 1).all())
  np.testing.assert_array_equal(routed.aux.load, np.bincount(np.ravel(BUCKETS[kind]), minlength=K))
  assert routed.aux.losses == {} and routed.aux.metrics['drop_frac'] == 0


@pytest.mark.parametrize('kind', ['previous', 'bigram'])
def test_the_token_before_is_the_text_s_wherever_tokens_are_moved(kind):
  """As layer `shuffled` and Mixture-of-Depths move them."""
  back = context().each(lambda a: a[:, ::-1])
  moved = call(fixed(kind=kind), back).assignment.expert
  np.testing.assert_array_equal(moved[:, ::-1], BUCKETS[kind])
  again = back.each(lambda a: a[:, ::-1]).group(4, 2)
  np.testing.assert_array_equal(call(fixed(kind=kind), again).assignment.expert.reshape(2, 4), BUCKETS[kind])


def test_kinds_are_all_tried():
  assert set(router.KINDS) == {*BUCKETS, *router.BUILT}


def test_nothing_is_learned():
  made = fixed()
  assert not jax.tree.leaves(nnx.state(made, nnx.Param))
  assert nnx.state(made, state.RouterState)['table'].shape == (V,)


def test_padding_goes_nowhere():
  routed = call(fixed(), context(mask=[[1, 1, 0, 1], [0, 1, 1, 1]]))
  np.testing.assert_array_equal(routed.assignment.expert, [[1, 2, K, 0], [K, 0, 2, 0]])
  np.testing.assert_array_equal(routed.aux.load, [3, 1, 2])


def test_capacity_drops_the_later_tokens():
  # Row 0 sends two tokens to expert 2, row 1 two to expert 0; there is a slot for one each.
  fields = dict(capacity_factor=(0.75, None), min_capacity=1)
  routed = call(fixed(**fields), context(train=True))
  np.testing.assert_array_equal(routed.assignment.expert, [[1, 2, K, 0], [1, 0, 2, K]])
  assert routed.assignment.capacity == 1 and routed.aux.metrics['drop_frac'] == 0.25
  assert call(fixed(**fields), context()).aux.metrics['drop_frac'] == 0


def test_only_the_future_token_leaks():
  for kind in BUCKETS:
    made = fixed(kind=kind)
    before = call(made, context()).assignment.expert.reshape(-1)
    for t in range(1, 8):
      ids = IDS.copy()
      ids.reshape(-1)[t] = {0: 1, 1: 2, 2: 0}[TABLE[ids.reshape(-1)[t]]]         # another bucket
      after = call(made, context(ids=ids)).assignment.expert.reshape(-1)
      leaks = bool((before[:t] != after[:t]).any())
      assert leaks == (kind == 'future' and POSITIONS.reshape(-1)[t] > 0), (kind, t)


def test_future_token_is_refused_in_a_causal_stack():
  with pytest.raises(errors.UserError, match="leaks it in a causal stack; nearest: kind='previous'"):
    call(fixed(kind='future'), context(causal=True))
  call(fixed(kind='future', allow_causal=True), context(causal=True))
  call(fixed(kind='future'), context())
  call(fixed(kind='bigram'), context(causal=True))


def test_fresh_experts_are_drawn_in_training_only():
  made = fixed(kind='fresh')
  ids, positions = np.zeros((2, 200), np.int32), np.zeros((2, 200), np.int32)
  run = lambda seed, train: np.asarray(call(made, context(
      ids, positions, key=jax.random.key(seed), train=train)).assignment.expert)
  np.testing.assert_array_equal(run(0, True), run(0, True))
  assert (run(0, True) != run(1, True)).mean() > 0.5
  assert np.bincount(run(0, True).ravel()).min() > 90
  assert not run(0, False).any()                                     # TABLE[0]


def test_table_is_a_function_of_the_seed():
  np.testing.assert_array_equal(make().table[...], tables_lib.random_table(V, K, 42))
  np.testing.assert_array_equal(make(seed=5).table[...], tables_lib.random_table(V, K, 5))
  assert make(kind='bigram').table is make(kind='position').table is None


def tables(scan_layers, seed=0, **fields):
  """i32[3,V], the tables of a stack of three layers."""
  blocks = dict(m=dict(layer='moe', executor='einsum', experts=dict(name='mlp', d_ff=4),
                       router=dict(name='hash', num_experts=K, vocab_size=V, **fields)))

  @jax.jit
  def build():
    made = stack.Stack(D, name='decoder', pattern=(('m', 2), ('m', 1)), blocks=blocks,
                       scan_layers=scan_layers, rngs=nnx.Rngs(seed))
    return [value[...] for _, value in nnx.to_flat_state(nnx.state(made, state.RouterState))]
  return np.concatenate([np.reshape(value, (-1, V)) for value in build()])


@pytest.mark.parametrize('scan_layers', [True, False])
def test_layers_have_tables_of_their_own(scan_layers):
  own = tables(scan_layers, hash_seed_per_layer=True)
  assert own.shape == (3, V) and own.min() >= 0 and own.max() < K
  assert all((own[i] != own[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_layers_share_a_table_whatever_the_models_seed():
  assert (tables(True, seed=1) == tables_lib.random_table(V, K, 42)).all()


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'table.npz'
  tables_lib.TableFile(np.array(TABLE, np.int32), K, 'balanced', 'words-1').write(path)
  return str(path)


def test_table_of_a_file(file):
  for kind in ('balanced', 'previous'):
    made = fixed(kind=kind, table=file)
    np.testing.assert_array_equal(made.table[...], TABLE)
    np.testing.assert_array_equal(call(made, context()).assignment.expert, BUCKETS[
        'random' if kind == 'balanced' else kind])
    assert made.vocabulary == 'words-1' and not made.seeded
  assert make().vocabulary is None and make().seeded


@pytest.mark.parametrize('fields, said', [
    (dict(kind='balanced', vocab_size=11), 'another vocabulary .*10 ids and the model has 11'),
    (dict(kind='balanced', num_experts=4), 'has 3 buckets, num_experts=4; nearest: num_experts=3'),
    (dict(kind='dispersed'), "is a balanced table, kind='dispersed'; nearest: kind='balanced'"),
    (dict(kind='random'), "is a balanced table, kind='random'"),
    (dict(kind='bigram'), "not used by kind='bigram'"),
    (dict(kind='balanced', hash_seed_per_layer=True), 'not used by hash_seed_per_layer=True'),
])
def test_table_of_something_else_is_refused(file, fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    make(table=file, **fields)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('fields, said', [
    (dict(kind='clustered'), 'stmoe tables NAME --kind clustered -o FILE.npz'),
    (dict(kind='balance'), 'nearest: balanced'),
    (dict(table='nowhere.npz'), "no hash table 'nowhere.npz'"),
])
def test_impossible_hashes_are_refused(fields, said):
  with pytest.raises(errors.UserError, match=said):
    router.Hash(D, num_experts=K, rngs=nnx.Rngs(0), **fields)


def test_another_vocabulary_than_the_models_is_refused():
  with pytest.raises(errors.UserError, match='another vocabulary: it has 10 ids and the model has 12'):
    call(fixed(), context(vocab_size=12))
  call(fixed(kind='position'), context(vocab_size=12))                # has no table
  call(fixed(), context(vocab_size=None))
