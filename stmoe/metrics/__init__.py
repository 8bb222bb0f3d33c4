"""Metrics of tasks as T5 computes them (arXiv:1910.10683); the file name is a metric's name.

Each module has `score(examples, predictions) -> dict name -> float`, usually out of 100. An example is a
record of `stmoe.data.text.examples`: `references` are the texts that count as right, `choices` the labels
there are, `group` what is scored together. Predictions are texts, decoded or the best of the choices.
"""
