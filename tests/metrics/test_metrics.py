"""Metrics on a few examples whose scores can be seen by eye."""

import importlib

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from stmoe import errors
from stmoe import lookup
from stmoe.data.text import examples as text_examples
from stmoe.metrics import big_bench
from stmoe.metrics import bleu
from stmoe.metrics import correlation
from stmoe.metrics import f1
from stmoe.metrics import matthews
from stmoe.metrics import multirc
from stmoe.metrics import rouge
from stmoe.metrics import squad
from stmoe.metrics import wsc
from stmoe.train import taskscore


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


def labelled(targets, labels='ab'):
  return [dict(references=[target], choices=list(labels)) for target in targets]


def test_f1_is_of_the_second_label_and_what_is_no_label_is_wrong():
  # Right of b: 1; said 2, since '' for an a is a b; there are 3.
  assert f1.score(labelled('abbb'), ['', 'b', 'a', 'c'])['f1'] == pytest.approx(100 * 2 / (2 + 3))
  assert f1.score(labelled('aa'), ['a', 'a'])['f1'] == 0.0


@pytest.mark.parametrize('labels', ['ab', 'abc'])
def test_matthews_is_that_of_scikit_learn_with_a_class_for_what_is_no_label(labels):
  rng = np.random.default_rng(0)
  targets, said = rng.choice(list(labels), 50), rng.choice([*labels, 'zzz'], 50)
  said = np.where(rng.random(50) < 0.5, targets, said)
  found = matthews.score(labelled(targets, labels), list(said))['matthews']
  assert found == pytest.approx(100 * sklearn.matthews_corrcoef(targets, said))
  other = ['?' if text == 'zzz' and i % 2 else text for i, text in enumerate(said)]
  assert matthews.score(labelled(targets, labels), other)['matthews'] == pytest.approx(found)
  assert matthews.score(labelled('ab'), ['b', 'a'])['matthews'] == -100.0
  assert matthews.score(labelled('ab'), ['b', 'b'])['matthews'] == 0.0


def test_correlations_are_those_of_scipy_and_what_is_no_number_is_minus_one():
  rng = np.random.default_rng(0)
  targets = [f'{number / 5:.1f}' for number in rng.integers(0, 26, 40)]
  said = [*[f'{number / 5:.1f}' for number in rng.integers(0, 26, 37)], 'fine', '', 'inf']
  numbers = [float(text) for text in said[:37]] + [-1.0] * 3
  found = correlation.score(labelled(targets), said)
  wanted = [float(text) for text in targets]
  assert found['pearson'] == pytest.approx(100 * stats.pearsonr(wanted, numbers)[0])
  assert found['spearman'] == pytest.approx(100 * stats.spearmanr(wanted, numbers)[0])
  for one in (['0.2'] * 40, ['1e308'] * 40):
    assert correlation.score(labelled(targets), one) == dict(pearson=0.0, spearman=0.0)
  assert correlation.score(labelled(targets[:1]), targets[:1]) == dict(pearson=0.0, spearman=0.0)


def test_of_one_query_the_first_example_counts():
  twice = [dict(references=['Anna', 'Bob'], group='q')] * 2 + [dict(references=['x y'], group='p')]
  assert squad.score(twice, ['bob', 'nobody', 'x z']) == dict(em=50.0, f1=75.0)
  assert squad.score(twice[:1], [''])['f1'] == 0.0


def test_squad_ignores_articles_and_punctuation_and_trivia_splits_at_it():
  assert squad.normalize('The U.S.A., an  "island"') == 'usa island'
  assert squad.normalize('A cat, a dog; vitamin a, anathema') == 'cat dog vitamin anathema'
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


class Text(str):
  """A text that counts how often it is compared."""
  compared = 0
  __hash__ = str.__hash__

  def __eq__(self, other):
    Text.compared += 1
    return str.__eq__(self, other)


def test_a_text_of_many_is_not_compared_with_all_others(monkeypatch):
  number = 300
  texts = [Text(f'text {i % (number - 1)}') for i in range(number)]  # one comes twice
  examples = [dict(targets=text, references=[text], choices=()) for text in texts]
  monkeypatch.setattr(Text, 'compared', 0)
  assert taskscore.baselines(examples, ['accuracy']) == {'accuracy': pytest.approx(200 / number)}
  ranked = big_bench.Ranked.of([np.log([0.6, 0.4])] * number, [np.array([1.0, 0.0])] * number,
                               [(text, Text('no')) for text in texts])
  assert big_bench.macro_f1(ranked) == 1.0
  assert Text.compared < 10 * number


@pytest.mark.parametrize('metric, kind', [('f1', 'IndexError'), ('wsc', 'KeyError'),
                                          ('macro_f1', 'ZeroDivisionError')])
def test_a_metric_of_another_kind_of_task_is_a_line(metric, kind):
  with pytest.raises(errors.UserError, match=f'metric {metric} cannot judge .*: {kind}: .*accuracy'):
    taskscore.score([metric], [text_examples.record('q', 'red')], ['red'])
