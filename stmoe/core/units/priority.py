"""What routers have in common that may serve the tokens of a group by falling gates (arXiv:2106.05974).

Such a router has the fields batch_priority and allow_causal. A token's place then depends on later tokens.
"""

import typing

from stmoe.core import contract
from stmoe.errors import UserError


def undecodable(router: typing.Any) -> str | None:
  """Returns why `router` cannot route tokens one by one, or None; see `contract.OFFERS`."""
  if not router.batch_priority:
    return None
  return 'batch_priority=True ranks the tokens of a group; nearest: batch_priority=False'


def check(router: typing.Any, ctx: contract.Context) -> None:
  """Raises UserError for batch priority of `router` in a causal stack, unless that is allowed."""
  if router.batch_priority and ctx.causal and not router.allow_causal:
    name = type(router).__module__.rpartition('.')[2]
    raise UserError(f'router {name}: batch_priority=True lets later tokens decide in a causal stack; '
                    'nearest: batch_priority=False (or allow_causal=True)')
