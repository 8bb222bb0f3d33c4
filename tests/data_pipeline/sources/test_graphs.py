"""Graphs: padded rows from JSON lines and arrays, labels of nodes and of graphs, splits, mistakes."""

import json

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.data import batches as pipeline

PAIR = dict(nodes=[[1, 2], [3, 4]], edges=[[0, 1]], labels=1, split='train')
TRIPLE = dict(nodes=[[5, 6], [7, 8], [9, 0.5]], edges=[[0, 1], [2, 1], [1, 2]], labels=0, split='validation')
# Five nodes in a ring, of which the labels of two are held out and of one unknown.
RING = dict(nodes=np.arange(10.0).reshape(5, 2), edges=np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]]),
            labels=np.array([0, 2, -1, 1, 0]), split=np.array(['train', 'validation'] * 2 + ['train']))


@pytest.fixture
def config(tmp_path):
  """Returns make(graphs or arrays, **fields of data) -> a configuration of a file with them."""
  def make(content, **fields):
    file = tmp_path / ('a.npz' if isinstance(content, dict) else 'a.jsonl')
    if isinstance(content, dict):
      np.savez(file, **content)
    else:
      file.write_text(''.join(json.dumps(graph) + '\n' for graph in content))
    data = dict(source='graphs', files=(str(file),), num_nodes=3, num_edges=4, num_features=2, nodes=False,
                shuffle=False, eval_split='validation', cache_dir=str(tmp_path / 'cache'))
    return ml_collections.ConfigDict(dict(seed=0, train=dict(batch_size=1), eval=dict(batch_size=1),
                                          data=data | fields))
  return make


def test_a_graph_is_filled_up_to_the_size_of_a_row(config):
  cfg = config([PAIR, TRIPLE])
  batch, held_out = next(pipeline.train_iterator(cfg)), pipeline.eval_batches(cfg)[0]
  assert batch['features'].tolist() == [[[1, 2], [3, 4], [0, 0]]]
  assert batch['node_weights'].tolist() == [[1, 1, 0]]
  assert batch['edges'].tolist() == [[[0, 1], [1, 0], [0, 0], [0, 0]]]
  assert batch['edge_weights'].tolist() == [[1, 1, 0, 0]]
  assert batch['labels'].tolist() == [[1]] and batch['weights'].tolist() == [[1]]
  assert held_out['edges'].tolist() == [[[0, 1], [1, 0], [1, 2], [2, 1]]] and held_out['edge_weights'].all()
  source = lookup.source(cfg.data)
  assert source.shapes(1) == {name: (a.shape, a.dtype) for name, a in batch.items()}
  assert source.lengths() == dict(encoder=3, decoder=1) and source.targets == 'labels'
  assert pipeline.info(cfg)['vocab_size'] == 2
  cfg = config([PAIR, TRIPLE | dict(labels=0.25)], undirected=False, classes=False)
  held_out = pipeline.eval_batches(cfg)[0]
  assert held_out['edge_weights'].sum() == 3 and held_out['values'].tolist() == [[0.25]]


def test_nodes_of_one_graph_are_in_both_splits_and_their_labels_in_one(config):
  cfg = config(RING, nodes=True, num_nodes=6, num_edges=10)
  batch, held_out = next(pipeline.train_iterator(cfg)), pipeline.eval_batches(cfg)[0]
  assert batch['weights'].tolist() == [[1, 0, 0, 0, 1, 0]]
  assert held_out['weights'].tolist() == [[0, 1, 0, 1, 0, 0]]
  for name in ('features', 'edges', 'labels', 'node_weights'):
    np.testing.assert_array_equal(batch[name], held_out[name])
  assert batch['labels'].tolist() == [[0, 2, 0, 1, 0, 0]] and pipeline.info(cfg)['vocab_size'] == 3
  assert lookup.source(cfg.data).lengths() == dict(encoder=6, decoder=6)


def test_arrays_of_several_graphs_are_cut_at_their_numbers(config):
  arrays = dict(nodes=np.arange(10.0).reshape(5, 2), edges=np.array([[0, 1], [3, 4], [2, 4]]), labels=[1, 0],
                graph=np.array([0, 0, 1, 1, 1]), split=np.array(['train', 'validation']))
  cfg = config(arrays, undirected=False)
  batch, held_out = next(pipeline.train_iterator(cfg)), pipeline.eval_batches(cfg)[0]
  assert batch['features'][0, :, 0].tolist() == [0, 2, 0] and batch['labels'].tolist() == [[1]]
  assert held_out['edges'][0].tolist() == [[0, 2], [1, 2], [0, 0], [0, 0]]


@pytest.mark.parametrize('content, fields, said', [
    ([PAIR, TRIPLE | dict(edges=[[0, 3]])], {}, 'line 2: edge 0 is from node 0 to node 3, and there are 3'),
    ([PAIR, TRIPLE], dict(num_nodes=2), 'data.num_nodes=2, but .*line 2 has 3; nearest: data.num_nodes=3'),
    ([PAIR, TRIPLE], dict(num_edges=3), 'data.num_edges=3, but .*line 2 has 4; nearest: data.num_edges=4'),
    ([PAIR, TRIPLE], dict(num_features=3), 'but .*line 1 has nodes of .2. features; .* data.num_features=2'),
    ([PAIR, TRIPLE], dict(nodes=True), 'line 1 has 1 labels; data.nodes=True means 2'),
    ([PAIR, TRIPLE | dict(labels=0.5)], {}, 'classes are whole numbers from 0 .*a label is 0.5'),
    ([PAIR, TRIPLE | dict(nodes=[[1, 2], [3]])], {}, 'line 2: nodes must be a list of lists of numbers'),
    ([PAIR, TRIPLE | dict(edges=[[0, 1, 2]])], {}, r'edges have the shape \[1, 3\]; an edge is two nodes'),
    ([PAIR, TRIPLE | dict(edges=[[0, -1]])], {}, 'must hold whole numbers of at least 0'),
    ([PAIR, dict(nodes=[], edges=[])], {}, "line 2 has no 'labels'"), ([PAIR, 3], {}, 'line 2 holds a int'),
    ([PAIR], {}, "the split 'validation' holds no labels"),
    ([PAIR, TRIPLE | dict(split='test')], {}, "split has 'test'"),
    (RING | dict(edges=np.array([[0, 5]])), dict(nodes=True), 'edge 0 is from node 0 to node 5'),
    (RING | dict(graph=np.array([0, 1, 0, 1, 0])), dict(nodes=True), 'in order from 0'),
    (RING | dict(graph=np.array([0, 0, 0, 1, 1])), dict(nodes=True), 'edge 2 is from graph 0 to graph 1'),
    (RING, {}, 'labels is int64.5.; it must hold 1 numbers')])
def test_mistakes_are_one_line(config, content, fields, said):
  with pytest.raises(errors.UserError, match=said) as error:
    pipeline.source(config(content, **fields))
  assert '\n' not in str(error.value)
