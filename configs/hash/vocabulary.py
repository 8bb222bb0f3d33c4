r"""One Hash layer of 64 experts with other vocabularies: 51,200 pieces, or 267,739 words.

Hash Layers (arXiv:2106.04426). Expected there: on RoBERTa + cc100en Hash 1x64 (794M) 26.99 of perplexity,
Switch about 27.4 (unverified). On Wikitext-103 Switch is better than Hash with the word dictionary, whose
frequencies are too skewed, and about equal with 8,008 pieces.
Differs: RoBERTa's corpus is not public; the stand-in of all data is C4/en with a BPE vocabulary of as many
ids (configs/hash/recipe.py says what else). It stands in for words, too: for Wikitext-103 and its words give
your own text and model (--config.data.task=text --config.data.files=FILE --config.data.vocab=MODEL).

  stmoe train hash/vocabulary:data=roberta
  stmoe train hash/vocabulary:data=wikitext_words,method=switch
  stmoe train hash/vocabulary:smoke                   laptop, about a minute
  data = roberta | wikitext | wikitext_words; method = hash | switch | dense
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.hash import paper
from stmoe.configs.hash import recipe

VARIANTS = ('data=wikitext', 'data=wikitext_words', 'method=switch', 'method=dense')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, data='roberta', method='hash')
  vocab_size = common.choose('data', args.data, {k: v for k, v in paper.VOCABS.items() if k != 'reddit'})
  make = common.choose('method', args.method, dict(hash=recipe.hashed, switch=recipe.switch, dense=None))
  places, sparse = ((paper.SPARSE_LAYER,), make(64)) if make else ((), None)
  c = recipe.pretraining(paper.WIDTHS, places, sparse, vocab_size)
  if args.method == 'switch':
    c.losses.balance = (1e-2, 'mean')
  return common.smoke(c) if args.smoke else c.lock()
