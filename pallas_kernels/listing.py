"""Rows that an index list names instead of an array that holds them: row r is x[token[r]]."""


def take(x, token):
  """Returns the rows [M,K] that are meant: x, or with a list i32[M] the rows of x [T,K] that it names."""
  return x if token is None else x.at[token].get(mode='promise_in_bounds')


def rows(x, token):
  """Returns M, how many rows are meant."""
  return (x if token is None else token).shape[0]


def check(name, token):
  """Raises ValueError unless the list called `name` is None or i32[M]."""
  if token is not None and (token.ndim != 1 or token.dtype != 'int32'):
    raise ValueError(f'{name} {token.dtype}{list(token.shape)} is not int32[M], one for each row')
