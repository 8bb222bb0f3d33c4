"""Any router with the same arguments; stmoe/conform/generic.py has them."""

from stmoe import lookup
from stmoe.conform import generic

VOCAB, FIELDS, build, losses = generic.VOCAB, generic.OF_ROUTERS, generic.router, generic.losses


def fields(name, **changed):
  """Returns the entries of FIELDS, with `changed` ones, that router `name` takes."""
  return generic.known(lookup.constructor('router', name), FIELDS | changed)
