"""NLLB-MoE (arXiv:2207.04672), a translator: top-2 of GShard over all tokens of a batch; biased layers.

Differs: in training whole tokens are masked, as in the paper, where transformers has dropout of numbers.
"""

from stmoe import errors
from stmoe import ranges
from stmoe.interop import fields
from stmoe.interop import rules

ARCHITECTURE = 'NllbMoeForConditionalGeneration'
COPIES = {name: 'model.shared.weight' for name in (
    'model.encoder.embed_tokens.weight', 'model.decoder.embed_tokens.weight', 'lm_head.weight')}
EPSILON = 1e-5                         # of all norms; config.json does not say it
LAYER, THEIRS = '{stack}/layers/{i}/', 'model.{stack}.layers.{i}.'


def _biased(ours, theirs, *op):
  """The rules of a matrix or a scale, `ours` with w, and of the bias beside it."""
  name, _, array = ours.rpartition('/')
  return [(ours, f'{theirs}.weight', *op), (f'{name}/{array.replace("scale", "bias").replace("w", "b")}',
                                            f'{theirs}.bias')]


RULES = [
    ('embed/table', 'model.shared.weight'), ('head/w', 'lm_head.weight', rules.LINEAR),
    *_biased('{stack}/norm/scale', 'model.{stack}.layer_norm'),
    *_biased(LAYER + 'layer_norm/scale', THEIRS + 'ff_layer_norm'),
    *(rule for ours, theirs in (('attention', 'self_attn'), ('cross', 'cross_attention')) for rule in (
        *_biased(f'{LAYER}{ours}/wo', f'{THEIRS}{theirs}.out_proj', rules.LINEAR),
        *_biased(LAYER + ours + '/w{m}', THEIRS + theirs + '.{m}_proj', rules.LINEAR),
        *_biased(f'{LAYER}{ours}_norm/scale', f'{THEIRS}{theirs}_layer_norm'))),
    (LAYER + 'layer/router/w', THEIRS + 'ffn.router.classifier.weight', rules.LINEAR),
    *(rule for w, name in (('wi', 'fc1'), ('wo', 'fc2')) for rule in (
        *_biased(f'{LAYER}layer/{w}', f'{THEIRS}ffn.{name}', rules.LINEAR),
        (f'{LAYER}layer/experts/{w}[{{e}}]', f'{THEIRS}ffn.experts.expert_{{e}}.{name}.weight', rules.LINEAR),
        (f'{LAYER}layer/experts/b{w[1]}[{{e}}]', f'{THEIRS}ffn.experts.expert_{{e}}.{name}.bias'))),
]


def table(c):
  """Returns the rules of configuration `c`."""
  return RULES


def ignored(c):
  """Returns regular expressions of tensors that are computed anew and not read."""
  return (r'model\.(encoder|decoder)\.embed_positions\.weights',)


def copied(c):
  """Returns the names of tensors that the format wants once more, where it was not an import: none."""
  return ()


def configure(hf, tied):
  """Returns the sections model, blocks and losses of a config.json."""
  heads, width = fields.need(hf, 'encoder_attention_heads'), fields.need(hf, 'd_model')
  fields.only(hf, decoder_attention_heads=heads, is_encoder_decoder=True, quantization_config=None)
  activation = fields.activation(hf, 'activation_function', 'relu')
  router, masking = _router(hf), float(fields.given(hf, 'moe_token_dropout', ranges.Below1, 0.2))
  model = dict(name='t5', vocab_size=fields.need(hf, 'vocab_size'), d_model=width, num_heads=heads,
               head_dim=width // heads, tie_embeddings=tied, scale_head=False, scaled=True, use_bias=True,
               first_position=fields.given(hf, 'pad_token_id', ranges.Natural, 1) + 1, norm='layer',
               embed_factor=width ** 0.5 if fields.given(hf, 'scale_embedding', ranges.Flag, True) else 1.0,
               norm_epsilon=EPSILON, dtype='float32', scan_layers=True, remat='elementwise')
  blocks = {}
  for stack, letters in (('encoder', 'dm'), ('decoder', 'ns')):
    d_ff = fields.need(hf, f'{stack}_ffn_dim')
    step = fields.given(hf, f'{stack}_sparse_step', ranges.Natural, 4)
    number = fields.need(hf, f'{stack}_layers', fields.LAYERS)
    named = ''.join(letters[bool(step) and (i + 1) % step == 0] for i in range(number))
    made = (dict(layer='dense', d_ff=d_ff, activation=activation, use_bias=True),
            dict(layer='moe', executor='blocks', group_size=None, whole_batch=True, output_masking=masking,
                 router=router, experts=dict(name='mlp', d_ff=d_ff, activation=activation, use_bias=True)))
    blocks |= {letter: block for letter, block in zip(letters, made) if letter in named}
    model[stack] = rules.pattern(named)
  weight = lambda key: (float(fields.given(hf, key, ranges.NonNegative, 0.001)), 'mean')
  return dict(model=model, blocks=blocks, losses=dict(balance=weight('router_aux_loss_coef'),
                                                      z=weight('router_z_loss_coef')))


def _router(hf):
  """The section of the router of a config.json.

  Places in evaluation are a share of the tokens; with a share of 0 they are those of training.
  """
  fields.only(hf, router_type='tokens_masked', router_bias=False, router_dtype='float32',
              router_ignore_padding_tokens=False, second_expert_policy='all', batch_prioritized_routing=False)
  slots = fields.given(hf, 'expert_capacity', ranges.Count, None if 'expert_capacity' in hf else 64)
  share = float(fields.given(hf, 'moe_eval_capacity_token_fraction', ranges.Share, 1.0))
  if slots is None and not share:
    raise errors.UserError('config.json: expert_capacity=None and moe_eval_capacity_token_fraction=0 say no '
                           'capacity of evaluation; nearest: moe_eval_capacity_token_fraction=1.0')
  return dict(name='gshard', num_experts=fields.need(hf, 'num_experts'), k=2, second_policy='all',
              expert_slots=(slots, None if share else slots), token_share=(None, share or None),
              normalize_after_drop=not fields.given(hf, 'normalize_router_prob_before_dropping', ranges.Flag,
                                                    False))


def describe(c):
  """Returns the config.json of our configuration `c`; raises UserError for another model or router."""
  m = c['model']
  if m['name'] != 't5' or m.get('first_position') is None:
    raise errors.UserError(f'model.name={m["name"]!r} without first_position: {ARCHITECTURE} has sinusoidal '
                           'positions; nearest: --to switch_transformers')
  made = {}
  for stack in ('encoder', 'decoder'):
    blocks = [c['blocks'][letter] for letter in rules.letters(m[stack])]
    sparse = [i for i, block in enumerate(blocks) if block['layer'] == 'moe']
    made |= {f'{stack}_layers': len(blocks), f'{stack}_sparse_step': sparse[0] + 1 if sparse else 0,
             f'{stack}_attention_heads': m['num_heads'],
             f'{stack}_ffn_dim': blocks[-1].get('experts', blocks[-1]).get('d_ff')}
  sparse = next((block for block in c['blocks'].values() if block['layer'] == 'moe'), None)
  if sparse is None or sparse['router']['name'] != 'gshard':
    raise errors.UserError(f'no layer has the router gshard, which {ARCHITECTURE} has; nearest: --to t5')
  router = sparse['router']
  slots, share = router.get('expert_slots', (None, None))[0], router.get('token_share', (None, None))[1]
  loss = lambda name: c.get('losses', {}).get(name, (0.0,))[0]
  return made | dict(
      architectures=[ARCHITECTURE], model_type='nllb-moe', vocab_size=m['vocab_size'], d_model=m['d_model'],
      is_encoder_decoder=True, tie_word_embeddings=m.get('tie_embeddings', False), router_bias=False,
      scale_embedding=m.get('embed_factor', 1.0) != 1.0, pad_token_id=m['first_position'] - 1,
      num_hidden_layers=made['encoder_layers'], decoder_start_token_id=m.get('start_id', 0),
      forced_bos_token_id=m.get('forced_id'),
      num_experts=router['num_experts'], expert_capacity=slots, moe_eval_capacity_token_fraction=share or 0.0,
      normalize_router_prob_before_dropping=not router.get('normalize_after_drop', False),
      activation_function=fields.spelled(sparse['experts'], 'relu'), second_expert_policy='all',
      moe_token_dropout=sparse.get('output_masking', 0.0), router_dtype='float32',
      router_aux_loss_coef=loss('balance'), router_z_loss_coef=loss('z'))
