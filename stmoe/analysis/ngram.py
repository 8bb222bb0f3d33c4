"""What simple models of bytes reach on a text: n-grams, and xz that has seen the training text.

The n-gram models are interpolated by Witten and Bell (IEEE Trans. Inf. Theory 37, 1991, method C). After a
context h that was seen c(h) times before T(h) different bytes,

  p(b | h) = (c(h b) + T(h) p(b | h without its first byte)) / (c(h) + T(h)).

p(b | no context) is interpolated with 1/256. A context that was never seen leaves p to the shorter context.
"""

import lzma

import numpy as np

LONGEST = 8                              # bytes of a gram: they are the digits of one uint64
WINDOW = 1 << 26                         # bytes of text that xz looks back


def bits(train, text, orders=LONGEST):
  """Returns a list of the bits per byte of `text` under the n-gram models of orders 1, 2, ..., `orders`.

  Args:
    train: bytes that the models count.
    text:  bytes that they predict; the first bytes have as much context as there is.
    orders: at most LONGEST.
  """
  train, text = (np.frombuffer(content, np.uint8) for content in (train, text))
  p, by_order = np.full(len(text), 1 / 256), []                      # [N]
  for n in range(1, min(orders, len(train), len(text)) + 1):
    p[n - 1:] = _longer(p[n - 1:], _grams(train, n), _grams(text, n))
    by_order.append(float(-np.log2(p).mean()))
  return by_order


def _longer(p, counted, asked):
  """[M]: probabilities of the last bytes of the grams `asked` [M]; `p` [M]: without their first bytes."""
  grams, count = np.unique(counted, return_counts=True)
  contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
  context, kinds = np.add.reduceat(count, first), np.diff(np.append(first, len(grams)))
  gram = _look_up(grams, count, asked)
  context, kinds = (_look_up(contexts, values, asked >> np.uint64(8)) for values in (context, kinds))
  return np.where(context > 0, (gram + kinds * p) / np.maximum(context + kinds, 1), p)


def _grams(x, n):
  """uint64 [N-n+1]: the grams of `n` bytes of x uint8 [N], one at each place."""
  grams = np.zeros(len(x) - n + 1, np.uint64)
  for i in range(n):
    grams = grams << np.uint64(8) | x[i:len(x) - n + 1 + i]
  return grams


def _look_up(keys, values, asked):
  """[M]: the value of each of `asked` [M] among the sorted `keys` [K], 0 where no key is equal."""
  at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
  return np.where(keys[at] == asked, values[at], 0)


def xz(train, text):
  """Returns the bits per byte that xz -9e spends on `text` after the bytes `train`."""
  how = [dict(id=lzma.FILTER_LZMA2, preset=9 | lzma.PRESET_EXTREME, dict_size=WINDOW)]
  size = lambda content: len(lzma.compress(content, format=lzma.FORMAT_XZ, filters=how))
  return 8 * (size(train + text) - size(train)) / len(text)
