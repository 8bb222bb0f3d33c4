"""Graphs that are drawn, from digits or from nothing: nodes whose neighbours know what they do not say.

Of every graph a share of nodes is noisy: their features say nothing of their class, their neighbours' do.
"""

from typing import NamedTuple

import numpy as np

NEIGHBOURS = 6                           # of a node of `digits`
CLASSES, TOPIC, WORDS = 7, 0.04, 18      # of `citations`: topics, words of each among all, words of a node
ALIKE, REFERENCES = 0.81, 2              # share of edges inside a class, and edges that a node begins
SHARES = dict(train=0.5, validation=0.2, test=0.3)


class Drawn(NamedTuple):
  """nodes f32[N,F], edges i32[M,2], labels i64[N]."""
  nodes: np.ndarray
  edges: np.ndarray
  labels: np.ndarray


def digits(num_nodes: int, num_features: int, noisy: float) -> Drawn:
  """Returns N of the 1,797 digits of scikit-learn as nodes, of 64 standardised pixels.

  A noisy node has normal noise for features, and edges from NEIGHBOURS nodes that are not noisy. These are
  nearest to the pixels that it hides. The other nodes have their pixels, and edges from random nodes.
  """
  del num_features                       # of a digit there are 64
  from sklearn import datasets
  found, rng = datasets.load_digits(), np.random.default_rng(0)
  chosen = rng.permutation(len(found.target))[:num_nodes]
  pixels, labels = found.data[chosen], found.target[chosen]
  pixels = (pixels - pixels.mean(0)) / (pixels.std(0) + 1e-6)
  hidden = rng.permutation(len(pixels)) < round(noisy * len(pixels))
  clean = np.flatnonzero(~hidden)
  square = lambda x: np.sum(x * x, axis=1)
  apart = square(pixels)[:, None] + square(pixels[clean]) - 2 * pixels @ pixels[clean].T
  nearest = clean[np.argsort(apart, axis=1, kind='stable')[:, :NEIGHBOURS]]        # [N, 6]
  begin = np.where(hidden[:, None], nearest, rng.integers(0, len(pixels), nearest.shape))
  nodes = np.where(hidden[:, None], rng.normal(size=pixels.shape), pixels)
  return Drawn(nodes.astype(np.float32), _pairs(begin), labels)


def citations(num_nodes: int, num_features: int, noisy: float) -> Drawn:
  """Returns N papers in 7 classes with F words each, 1 or 0, as Cora is: there N = 2,708 and F = 1,433.

  A paper has WORDS words, half of them of its class's topic; of a noisy paper none are. Edges are
  between papers of one class with probability ALIKE, else between any two.
  """
  rng = np.random.default_rng(0)
  labels = rng.integers(0, CLASSES, num_nodes)
  topics = rng.random((CLASSES, num_features)) < TOPIC
  topics[:, 0] = True                    # none is empty
  hidden = rng.permutation(num_nodes) < round(noisy * num_nodes)
  nodes = np.zeros((num_nodes, num_features), np.float32)
  for node in range(num_nodes):
    own = np.flatnonzero(topics[labels[node]])
    of_topic = 0 if hidden[node] else WORDS // 2
    nodes[node, rng.choice(own, of_topic)] = 1
    nodes[node, rng.integers(0, num_features, WORDS - of_topic)] = 1
  members = [np.flatnonzero(labels == kind) for kind in range(CLASSES)]
  alike = rng.random((num_nodes, REFERENCES)) < ALIKE
  of_class = np.stack([rng.choice(members[kind], REFERENCES) for kind in labels])
  return Drawn(nodes, _pairs(np.where(alike, of_class, rng.integers(0, num_nodes, alike.shape))), labels)


def split(num_nodes: int, seed: int, held: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (bool[N] that train, bool[N] that are held out); parts of a random order, in SHARES.

  held: 'validation' or 'test'; the third part is in neither.
  """
  order = np.random.default_rng([1, seed]).permutation(num_nodes)
  ends = np.cumsum([round(share * num_nodes) for share in SHARES.values()])
  place = np.minimum(np.searchsorted(ends, order, side='right'), len(SHARES) - 1)
  return place == 0, place == list(SHARES).index(held)


TASKS = dict(digits=digits, citations=citations)


def _pairs(begin):
  """I32[M,2], edges to every node from the nodes `begin` [N,n], without edges to itself."""
  to = np.broadcast_to(np.arange(len(begin))[:, None], begin.shape)
  edges = np.stack([begin, to], axis=-1).reshape(-1, 2).astype(np.int32)
  return edges[edges[:, 0] != edges[:, 1]]
