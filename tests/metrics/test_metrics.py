"""Metrics on a few examples whose scores can be seen by eye."""

import importlib

import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.metrics import bleu
from stmoe.metrics import multirc
from stmoe.metrics import rouge
from stmoe.metrics import squad
from stmoe.metrics import wsc


@pytest.mark.parametrize('name', lookup.available('metric'))
def test_every_metric_has_a_score(name):
  module = importlib.import_module(f'stmoe.metrics.{name}')
  assert hasattr(module, 'score')


def answers(*found):
  return [dict(references=[target], group=group) for group, target in found]


def test_multirc_counts_answers_and_whole_questions():
  examples = answers((0, 'True'), (0, 'False'), (1, 'True'), (1, 'True'))
  # Three are said to be true, two of the three that are: F1 = 2 * 2 / (3 + 3).
  found = multirc.score(examples, ['True', 'True', 'True', 'False'])
  assert found == pytest.approx(dict(f1a=200 / 3, em=0.0))
  assert multirc.score(examples, ['True', 'False', 'True', 'False'])['em'] == 50.0
  # What is no label counts as wrong whatever is right: here the last two become False.
  assert multirc.score(examples, ['True', 'False', '', 'yes']) == pytest.approx(dict(f1a=50.0, em=50.0))
  assert multirc.score(answers((0, 'False')), ['maybe'])['em'] == 0.0


def test_of_one_query_the_first_example_counts():
  twice = [dict(references=['Anna', 'Bob'], group='q')] * 2 + [dict(references=['x y'], group='p')]
  assert squad.score(twice, ['bob', 'nobody', 'x z']) == dict(em=50.0, f1=75.0)
  assert squad.score(twice[:1], [''])['f1'] == 0.0


def test_squad_ignores_articles_and_punctuation_and_trivia_splits_at_it():
  assert squad.normalize('The U.S.A., an  "island"') == 'usa island'
  trivia = lookup.module('metric', 'trivia_qa')
  assert trivia.normalize('Jean-Luc’s the_end') == 'jean luc s end'


def test_wsc_takes_either_words_within_the_other_but_no_possessive():
  assert wsc.names('bunny', 'the fuzzy bunny') and wsc.names('my fuzzy bunny', 'Bunny')
  assert not wsc.names('fuzzy cat', 'bunny') and not wsc.names("bob's hat", 'bob')
  no = [dict(references=['bob'], label=False)]
  assert wsc.score(no, ['ann'])['accuracy'] == 100.0 and wsc.score(no, ['the'])['accuracy'] == 0.0


def test_rouge_takes_the_best_reference_and_says_what_it_stems():
  examples = [dict(references=['dogs run', 'cats sleeping'])]
  found = rouge.score(examples, ['cat sleeping'])
  # Without a stemmer one word of two, no pair; with it all.
  assert found == pytest.approx(dict(
      rouge1=50, rouge2=0, rougeLsum=50, rouge1_stemmer=100, rouge2_stemmer=100, rougeLsum_stemmer=100))


def test_bleu_takes_several_references():
  examples = [dict(references=['a b c d e', 'x']), dict(references=['v w x y z'])]
  assert bleu.score(examples, ['a b c d e', 'v w x y z'])['bleu'] == pytest.approx(100)
  assert bleu.score(examples, ['e d c b a', 'v w x y z'])['bleu'] < 70
  assert bleu.bleu(examples, ['A b c d e', 'v w x y z'], lowercase=True) == pytest.approx(100)


def test_unknown_metric_names_the_nearest():
  with pytest.raises(errors.UserError, match="no metric is called 'acuracy'; nearest: accuracy"):
    lookup.module('metric', 'acuracy')
