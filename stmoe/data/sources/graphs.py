"""Graphs: features of nodes, edges, and a label for every node or every graph, padded to one size."""

import dataclasses
import typing
from typing import NamedTuple

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import files
from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import given
from stmoe.data import record as records
from stmoe.data.graphs import drawn
from stmoe.data.text import tasks

FIELDS = ('nodes', 'edges', 'labels')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graphs:
  """A row is a graph of N nodes and M edges; smaller graphs are filled up.

  Its entries are
    features f32[rows,N,F] of nodes; node_weights f32[rows,N]: 1, and 0 where there is no node
    edges i32[rows,M,2], from node and to node; edge_weights f32[rows,M]: 1, and 0 where there is no edge
    labels i32[rows,n], or values f32[rows,n]; weights f32[rows,n]: n is N, or 1 for a whole graph.

  task: 'files'; or 'digits' or 'citations', one graph that is drawn (`data/graphs/drawn.py`), with labels of
    nodes. Of such a graph half of the nodes train, a fifth are for validation, the others for the test.
  files: one for both splits, or one for training and one for validation; .jsonl or .npz.
    A line of a .jsonl is a graph: {"nodes": [[0.5, ...], ...], "edges": [[0, 1], ...], "labels": ...}. Labels
    are a number, or a number for each node, null where there is none. "split": "train" or "validation" may be
    said of the graph, or of each of its nodes.
    The arrays of an .npz are nodes [nodes,F] and edges [edges,2] of all graphs, whose nodes are numbered
    through. graph [nodes] is the number of the graph that a node is in, in order from 0 (absent: the file is
    one graph). labels are of all nodes, or of graphs, NaN or -1 where there is none. split is of the same,
    and may be absent. Where no split is said, every tenth graph is held out, or every tenth node of a single
    graph.
  nodes: whether labels are of nodes, each of which is in a split: the other nodes of the graph are still
    seen. Otherwise they are of whole graphs.
  classes: whether labels are classes, whole numbers from 0; otherwise labels are any numbers.
  num_nodes: N, the room for nodes of a graph.
  num_edges: M, the room for edges of a graph, both ways of an undirected one counted.
  num_features: F, of a node.
  undirected: whether every edge goes both ways.
  noisy: of a drawn graph, the share of nodes whose features say nothing.
  split_seed: of a drawn graph, the seed of its splits.
  held: of a drawn graph, whether what is held out is 'validation' or 'test'.
  cache_dir: folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  task: ranges.Choice('files', *drawn.TASKS) = 'files'
  files: ranges.Many(ranges.Text) = ()
  num_nodes: ranges.Count
  num_edges: ranges.Count
  num_features: ranges.Count
  nodes: ranges.Flag = True
  classes: ranges.Flag = True
  undirected: ranges.Flag = True
  noisy: ranges.Share = 0.5
  split_seed: ranges.Natural = 0
  held: ranges.Choice('validation', 'test') = 'validation'
  cache_dir: ranges.Text = ''

  kind = 'graphs'

  @property
  def targets(self) -> str:
    """What a model must predict."""
    return 'labels' if self.classes else 'values'

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    of_drawn = ('task', 'noisy', 'split_seed', 'held') if self.task == 'files' else ()
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
            if field.name not in ('cache_dir', *of_drawn)}

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch."""
    targets = (rows, self.num_nodes if self.nodes else 1)
    label = dict(labels=(targets, np.int32)) if self.classes else dict(values=(targets, np.float32))
    return label | dict(
        weights=(targets, np.float32), features=((rows, self.num_nodes, self.num_features), np.float32),
        node_weights=((rows, self.num_nodes), np.float32), edges=((rows, self.num_edges, 2), np.int32),
        edge_weights=((rows, self.num_edges), np.float32))

  def lengths(self, model: typing.Any = None) -> dict:
    """Returns dict stack -> positions of a row: nodes, and what has a label."""
    return dict(encoder=self.num_nodes, decoder=self.num_nodes if self.nodes else 1)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> arrays.Opened:
    """Returns the graphs; of a run's Record `found` if they are the same."""
    return arrays.Opened(self, found, lambda: _read(self) if self.task == 'files' else _drawn(self))


class Graph(NamedTuple):
  """A graph: where it was read, nodes f32[n,F], edges i32[m,2], labels f32[n or 1], held out bool[n or 1].

  An absent label is NaN.
  """
  where: str
  nodes: np.ndarray
  edges: np.ndarray
  labels: np.ndarray
  held: np.ndarray


def _read(source):
  """(dict split -> dict name -> array, facts) of the files of a source."""
  paths, parts = arrays.paths(source), {split: [] for split in tasks.SPLITS}
  for path in paths:
    read = _npz if path.lower().endswith('.npz') else _jsonl
    for graph in read(source, path):
      held_out = graph.held if len(paths) == 1 else np.full(graph.held.shape, path == paths[1])
      for split, chosen in zip(tasks.SPLITS, (~held_out, held_out)):
        if chosen.any():
          parts[split].append(_padded(source, _checked(source, graph), chosen))
  for split, rows in parts.items():
    if not any(row['weights'].any() for row in rows):
      raise errors.UserError(f'{paths[-1]}: the split {split!r} holds no labels')
  by_split = {split: {name: np.stack([row[name] for row in rows]) for name in rows[0]}
              for split, rows in parts.items()}
  return by_split, _facts(source, by_split)


def _facts(source, by_split):
  """The facts of dict split -> dict name -> array."""
  classes = max(int(part['labels'].max()) for part in by_split.values()) + 1 if source.classes else 0
  return dict(num_classes=classes)


def _drawn(source):
  """(dict split -> dict name -> array, facts) of a source whose graph is drawn."""
  if source.files:
    raise errors.UserError(f'data.files is set, but task {source.task} reads none; nearest: data.task=files')
  if not (source.nodes and source.classes):
    raise errors.UserError(f'data.nodes={source.nodes}, data.classes={source.classes}: task {source.task} '
                           'has classes of nodes; nearest: data.nodes=True, data.classes=True')
  nodes, edges, labels = drawn.TASKS[source.task](source.num_nodes, source.num_features, source.noisy)
  where = f'data.task={source.task!r}'
  graph = _checked(source, Graph(where, nodes, edges, labels.astype(np.float64), np.zeros(len(labels), bool)))
  parts = drawn.split(len(labels), source.split_seed, source.held)
  rows = {split: _padded(source, graph, chosen) for split, chosen in zip(tasks.SPLITS, parts)}
  by_split = {split: {name: array[None] for name, array in row.items()} for split, row in rows.items()}
  return by_split, _facts(source, by_split)


def _padded(source, graph, chosen):
  """Dict name -> array of a row: a graph of which the labels `chosen` bool[n or 1] count."""
  shapes = source.shapes(1)
  row = {name: np.zeros(shape[1:], dtype) for name, (shape, dtype) in shapes.items()}
  nodes, edges, labels = len(graph.nodes), len(graph.edges), len(graph.labels)
  labelled = ~np.isnan(graph.labels)
  row['features'][:nodes], row['node_weights'][:nodes] = graph.nodes, 1
  row['edges'][:edges], row['edge_weights'][:edges] = graph.edges, 1
  row['labels' if source.classes else 'values'][:labels] = np.where(labelled, graph.labels, 0)
  row['weights'][:labels] = labelled & chosen
  return row


def _checked(source, graph):
  """The Graph `graph` with the edges that a source wants; raises UserError for a graph that does not fit."""
  where, nodes, edges, labels, _ = graph
  if nodes.shape[1:] != (source.num_features,):
    raise errors.UserError(f'data.num_features={source.num_features}, but {where} has nodes of '
                           f'{list(nodes.shape[1:])} features; nearest: data.num_features={nodes.shape[-1]}')
  _between(where, edges, len(nodes))
  if source.undirected:
    edges = np.concatenate([edges, edges[:, ::-1]])
  edges = np.unique(edges, axis=0)
  for field, size in (('num_nodes', len(nodes)), ('num_edges', len(edges))):
    if size > getattr(source, field):
      raise errors.UserError(f'data.{field}={getattr(source, field)}, but {where} has {size}; nearest: '
                             f'data.{field}={size}')
  num_labels = len(nodes) if source.nodes else 1
  if labels.shape != (num_labels,):
    raise errors.UserError(f'{where} has {labels.size} labels; data.nodes={source.nodes} means {num_labels}')
  real = labels[~np.isnan(labels)]
  wrong = real[(real < 0) | (real != np.floor(real)) | (real >= 2 ** 31)]
  if source.classes and wrong.size:
    raise errors.UserError(f'{where}: classes are whole numbers from 0 (data.classes=True), and a label is '
                           f'{wrong[0]}')
  return graph._replace(edges=edges)


def _between(where, edges, count):
  """Raises UserError for an edge that is not between the `count` nodes."""
  far = np.flatnonzero((edges >= count).any(1))
  if far.size:
    begin, end = edges[far[0]]
    raise errors.UserError(f'{where}: edge {far[0]} is from node {begin} to node {end}, and there are '
                           f'{count} nodes, numbered from 0')


def _held(source, where, split, number, single, size):
  """Bool[size], which of a graph's labels are held out; `single` = the graph is alone in its file."""
  if isinstance(split, str):
    return np.full(size, arrays.held_out(where, [split], 1)[0])
  if split is not None or source.nodes and single:
    return arrays.held_out(where, split, size)
  return np.full(size, number % arrays.HELD_OUT == arrays.HELD_OUT - 1)


def _jsonl(source, path):
  """The Graphs of a file of JSON lines, plain or .gz."""
  lines = list(given.lines(path, 'data.files'))
  for number, (line, text) in enumerate(lines):
    where = f'{path}, line {line}'
    try:
      values = files.parse_json(text)
    except ValueError as error:
      raise errors.UserError(f'{where} {error}') from error
    missing = next((field for field in FIELDS if field not in values), None)
    if missing:
      raise errors.UserError(f'{where} has no {missing!r}{errors.nearest(missing, values)} (it has: '
                             f'{", ".join(values)})')
    labels = values['labels'] if isinstance(values['labels'], list) else [values['labels']]
    labels = _array(where, 'labels', [np.nan if label is None else label for label in labels], 1, nan=True)
    edges = _array(where, 'edges', values['edges'] or np.zeros((0, 2), int), 2)
    yield Graph(where, _array(where, 'nodes', values['nodes'], 2), _pairs(where, edges), labels,
                _held(source, where, values.get('split'), number, len(lines) == 1, len(labels)))


def _array(where, name, value, ndim, nan=False):
  """F32 or whole numbers of a list of JSON, which has `ndim` levels; `nan` = NaN is allowed."""
  try:
    array = np.array(value)
  except ValueError:                     # of lists that are not equally long
    array = np.array([], object)
  if array.dtype.kind not in 'iuf' or array.ndim != ndim:
    raise errors.UserError(f'{where}: {name} must be a list of {"lists of " * (ndim - 1)}numbers, '
                           f'{"each equally long" if ndim > 1 else "or one number"}')
  if array.dtype.kind == 'f' and not nan:
    return arrays.numbers(where, name, array, (ndim,))
  return array.astype(np.float64) if nan else array


def _pairs(where, edges):
  """I32[m,2] of edges; UserError for other shapes and numbers below 0."""
  edges = arrays.whole(where, 'edges', edges)
  if edges.ndim != 2 or edges.shape[1] != 2:
    raise errors.UserError(f'{where}: edges have the shape {list(edges.shape)}; an edge is two nodes')
  return edges


def _npz(source, path):
  """The Graphs of an .npz."""
  fields = arrays.read(path)
  nodes, edges, labels = (fields[arrays.named(path, fields, name)] for name in FIELDS)
  nodes = arrays.numbers(path, 'nodes', nodes, (2,))
  edges = _pairs(path, edges)
  graph = np.zeros(len(nodes), np.int32)
  if 'graph' in fields:
    graph = arrays.whole(path, 'graph', fields['graph'])
  if graph.shape != (len(nodes),) or (np.diff(graph) < 0).any():
    raise errors.UserError(f'{path}: graph has the shape {list(graph.shape)}; it must hold the number of the '
                           f'graph of each of the {len(nodes)} nodes, in order from 0')
  _between(path, edges, len(nodes))
  across = np.flatnonzero(graph[edges[:, 0]] != graph[edges[:, 1]])
  if across.size:
    raise errors.UserError(f'{path}: edge {across[0]} is from graph {graph[edges[across[0], 0]]} to graph '
                           f'{graph[edges[across[0], 1]]}')
  labels = _labels(source, path, labels, len(nodes) if source.nodes else int(graph.max(initial=-1)) + 1)
  return list(_cut(source, path, nodes, edges, labels, graph, fields.get('split')))


def _labels(source, path, labels, wanted):
  """F64[wanted] of labels, NaN where there is none."""
  if labels.dtype.kind not in 'iuf' or labels.shape != (wanted,):
    raise errors.UserError(f'{path}: labels is {labels.dtype}{list(labels.shape)}; it must hold {wanted} '
                           'numbers')
  return np.where(labels == -1, np.nan, labels) if source.classes else labels.astype(np.float64)


def _cut(source, path, nodes, edges, labels, graph, split):
  """Yields the Graphs of the arrays of an .npz."""
  count = int(graph.max(initial=-1)) + 1
  for number in range(count):
    begin, end = np.searchsorted(graph, [number, number + 1])
    of_graph = slice(begin, end) if source.nodes else slice(number, number + 1)
    part = split[of_graph] if split is not None and split.shape == labels.shape else split
    inside = graph[edges[:, 0]] == number if len(edges) else np.zeros(0, bool)
    where = f'{path}, graph {number}'
    yield Graph(where, nodes[begin:end], edges[inside] - np.int32(begin), labels[of_graph],
                _held(source, where, part, number, count == 1, len(labels[of_graph])))
