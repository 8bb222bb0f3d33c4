"""Laws of the final loss, a file each; the file name is the law's name (lookup kind 'law').

A law is a module with

  SOURCE        paper and equation, one line.
  FORMULA       the law as one line of text.
  COLUMNS       names of the columns of a table that it reads, besides 'loss'; see `columns.MEANING`.
  COEFFICIENTS  dict name -> coefficient.Coefficient: bounds and starting values of a fit.
  PUBLISHED     dict label -> dict name -> value: the coefficients of papers, with their source.
  predict(coefficients, table) -> loss f64[..., R] in nats. Coefficients are scalars or [..., 1], columns of
                the table [R]. Arithmetic, powers, np.log and np.exp only. Fits differentiate `predict` by a
                complex step, so it must take complex coefficients.
  size(table)   f64[R] by which the largest runs are held out.
  derived(coefficients) -> dict name -> value: what follows from the coefficients alone.
  advice(table) -> list of lines: coefficients that these runs say little about.

and, where a figure needs them (without them the figure is left out),

  equivalent(coefficients, table) -> f64[..., R] dense parameters of equal predicted loss.
  SIZE, HELD    the column of model size that a budget is traded against 'tokens', and the columns held fixed.
  flops_per_token(size, held) -> training FLOPs of one token; held is dict column -> value.
"""
