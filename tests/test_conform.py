"""The shared checks of kinds that no other test calls, on all files of these kinds."""

import pytest

from stmoe import conform
from stmoe import lookup
from stmoe.plugins import kinds

# Fields where the generic ones do not do: (kind, name) -> fields.
FIELDS: dict = {
    ('around', 'mixture_of_depths'): dict(share=0.5),
    ('attention', 'graph_of_tokens'): dict(head='earlier'),
    ('attention', 'latent_attention'): dict(nope_dim=3, value_dim=5, kv_rank=6, q_rank=7),
    ('attention', 'union_of_experts'): dict(select='causal'),
}
# Of images in noise, and of a model with positions of its own: no parts of a language model.
LEFT = {('around', 'ada_ln_zero'), ('around', 'denoising_task_routing'), ('around', 'switch_dit'),
        ('attention', 'span_attention')}
# Kinds -> the files whose checks are quick enough for each run of the suite; None = all.
QUICK = {'metric': None, 'virtual': ['constant'], 'around': ['parallel'], 'attention': [],
         'strategy': ['sample']}


def cases():
  for kind, quick in QUICK.items():
    for name in lookup.available(kind):
      slow = quick is not None and name not in quick
      if (kind, name) not in LEFT:
        yield pytest.param(kind, name, marks=[pytest.mark.slow] * slow, id=f'{kind}-{name}')


@pytest.mark.parametrize('kind, name', list(cases()))
def test_files_pass_the_checks_of_their_kind(kind, name):
  for check in conform.checks(kind):
    check(name, **FIELDS.get((kind, name), {}))


@pytest.mark.parametrize('kind', kinds.MODULES)
def test_functions_pass_the_checks_of_their_kind(kind):
  for name in lookup.available(kind):
    for check in conform.checks(kind):
      check(name)
