"""What is said of fields: entries of docstrings, and a text for every field that no docstring has."""

import pathlib
import re

import pytest

from stmoe import experiment
from stmoe import explained
from stmoe import lookup
from stmoe import sections


def rows(name):
  config, _ = experiment.load(name)
  return {row.path: row for _, _, fields in explained.configuration(config) for row in fields}


def test_entries_of_a_docstring_are_names_with_their_further_lines():
  text = 'A: no entry of a field.\n\nArgs:\n  k, n: how many\n    there are.\n\n    not this\n  m:     other.'
  both = 'how many there are'
  assert explained.entries(text) == dict(A='no entry of a field', k=both, n=both, m='other')


def test_a_configuration_is_explained_whole():
  found = rows('lm/quickstart:method=switch')
  config, _ = experiment.load('lm/quickstart:method=switch')
  assert set(found) == {path for path in experiment.flatten(config)}
  factor = found['blocks.m.router.capacity_factor']
  assert factor.value == (1.25, 2.0) == factor.default
  assert factor.text == '(train, eval) slots per token; None = nothing is dropped'
  assert 'two values' in factor.range
  assert found['train.clip'].text == 'most norm of the gradient; 0 = not clipped'
  assert found['losses.balance'].text.startswith('(weight, reduction over layers)')
  assert found['data.replaced'].text.startswith('share of the tokens of the text')
  assert found['loss.z'].text and found['blocks.d.norm'].text


@pytest.mark.parametrize('name', ['switch/base_c4', 'vmoe/digits', 'robust_qa/moe_head'])
def test_every_kind_of_configuration_has_lines(name):
  config, _ = experiment.load(name)
  lines = list(explained.lines(config, 80))
  assert all(len(line) <= 80 for line in lines if line.startswith('      ') and ' ' in line.strip())
  titles = [line for line in lines if line and not line.startswith(' ')]
  assert {'model', 'data', 'optimizer', 'train'} <= {line.split()[0] for line in titles}


def test_every_field_without_a_docstring_has_a_text():
  listed = {f'{section}.{field}' for section, fields in sections.TABLES.items() for field in fields}
  listed |= {f'data.{field}' for field in sections.EVERY_SOURCE}
  assert listed <= set(explained.SECTIONS)
  stale = {path for path in explained.SECTIONS if path.partition('.')[0] in sections.TABLES} - listed
  assert not stale


@pytest.mark.parametrize('kind', lookup.PACKAGES)
def test_every_module_has_a_line(kind):
  assert all(explained.line(kind, name) for name in lookup.available(kind))


@pytest.mark.parametrize('kind', sorted({*lookup.PACKAGES} - {'writer'}))          # which have no fields
def test_every_field_has_an_entry_of_its_own(kind):
  """What is said of another field within the entry of one is shown at the wrong field."""
  for name in lookup.available(kind):
    fields = '|'.join(map(re.escape, lookup.fields(kind, name))) or 'no field'
    docstring = explained._docstring(kind, name)
    texts = explained.entries(docstring).values()
    assert not [text for text in texts if re.search(rf'[.;] ({fields}): ', text)], f'{kind} {name}'


@pytest.mark.parametrize('name, begins', [
    ('drop', 'Drop. An edge that finds no place.'), ('Drops', 'Drop. An edge'), ('max_load', 'Load. The'),
    ('top-k', 'Top-k. Every token'), ('carry', 'Context, carry, aux. What a layer may know')])
def test_words_are_explained_without_markup(name, begins):
  text = explained.word(name)
  assert text.startswith(begins) and not set('*`[\n') & set(text)


def test_what_is_no_word_is_none_and_all_words_of_the_page_are_there():
  assert explained.word('nosuchword') is None
  page = (pathlib.Path(__file__).parents[1] / 'docs' / 'concepts.md').read_text()
  assert len(re.findall(r'^\*\*', page, re.M)) == len({explained.word(w) for w in explained.words()}) > 20
