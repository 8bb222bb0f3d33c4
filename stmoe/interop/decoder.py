"""What families of decoder-only models have in common: names, sizes, rotary positions."""

import math

from stmoe import errors
from stmoe import lookup
from stmoe.interop import fields
from stmoe.interop import rules

LAYER = 'model.layers.{i}.'
ATTENTION = [
    ('decoder/layers/{i}/attention/w{m}', LAYER + 'self_attn.{m}_proj.weight', rules.LINEAR),
    ('decoder/layers/{i}/attention/b{m}', LAYER + 'self_attn.{m}_proj.bias'),
    ('decoder/layers/{i}/attention/{m}_norm/scale', LAYER + 'self_attn.{m}_norm.weight'),
]
REST = [
    ('embed/table', 'model.embed_tokens.weight'),
    ('head/w', 'lm_head.weight', rules.LINEAR),
    ('decoder/norm/scale', 'model.norm.weight'),
    ('decoder/layers/{i}/attention_norm/scale', LAYER + 'input_layernorm.weight'),
    ('decoder/layers/{i}/layer_norm/scale', LAYER + 'post_attention_layernorm.weight'),
]
COPIES = {'lm_head.weight': 'model.embed_tokens.weight'}             # where the head is tied
IGNORED = (r'.*\.rotary_emb\.inv_freq',)


def ignored(c):
  """Returns regular expressions of tensors that are computed anew and not read."""
  return IGNORED


def copied(c):
  """Returns the names of tensors that the format wants once more, where it was not an import: none."""
  return ()


def glu(ours, theirs, names=('gate_proj', 'up_proj', 'down_proj')):
  """Returns the rules of a gated feed-forward layer whose three matrices are called `names` there."""
  bank = '[{e}]' if '{e}' in theirs else ''
  return [(f'decoder/layers/{{i}}/layer/{ours}{w}{bank}', f'{LAYER}{theirs}{name}.weight', rules.LINEAR)
          for w, name in zip(('wi', 'wg', 'wo'), names)]


def model(hf, layers, tied, **more):
  """Returns the section `model` of a config.json; `layers` has one letter a layer."""
  heads, width = fields.need(hf, 'num_attention_heads'), fields.need(hf, 'hidden_size')
  base, scaling, _ = rope(hf)
  kv_heads = hf.get('num_key_value_heads') or heads
  return dict(name='lm', vocab_size=fields.need(hf, 'vocab_size'), d_model=width, num_heads=heads,
              head_dim=hf.get('head_dim') or width // heads,
              num_kv_heads=None if kv_heads == heads else kv_heads, layers=rules.pattern(layers),
              rotary_base=base, rotary_scaling=scaling, tie_embeddings=tied, scale_head=False,
              norm_epsilon=fields.need(hf, 'rms_norm_eps'), dtype='float32',
              scan_layers=True, remat='none') | more


def dense(d_ff, activation):
  """Returns a dense block."""
  return dict(layer='dense', d_ff=d_ff, activation=activation, gated=True)


def moe(router, d_ff, activation):
  """Returns the fields of a dropless sparse layer."""
  return dict(executor='blocks', group_size=None, router=router,
              experts=dict(name='glu', d_ff=d_ff, activation=activation))


def losses(hf):
  """Returns the router losses of a config.json, for training on."""
  return dict(balance=(float(hf.get('router_aux_loss_coef') or 0.0), 'mean'), z=(0.0, 'mean'))


def rope(hf):
  """Returns (base, fields of `rotary.yarn` or None, factor of the attention's logits).

  Fields of both spellings: rope_parameters of transformers 5, rope_theta and rope_scaling before.
  """
  scaling = hf.get('rope_parameters') or dict(hf.get('rope_scaling') or {}, rope_theta=hf.get('rope_theta'))
  base = float(scaling.get('rope_theta') or hf.get('rope_theta') or 10000.0)
  kind = scaling.get('rope_type') or scaling.get('type') or 'default'
  if kind == 'default':
    return base, None, 1.0
  if kind != 'yarn':
    raise errors.UserError(f'config.json: rotary positions of type {kind!r} are not supported'
                           f'{errors.nearest(kind, ("default", "yarn"))} (there are: default, yarn)')
  factor = float(scaling['factor'])
  size = lambda scale: 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
  one, every = scaling.get('mscale'), scaling.get('mscale_all_dim')
  # What cos and sin get divides out of the logits again, where the two scales are equal.
  turned = scaling.get('attention_factor') or (size(one) / size(every) if one and every else size(1.0))
  length = scaling.get('original_max_position_embeddings') or fields.need(hf, 'max_position_embeddings')
  scaled = dict(factor=factor, length=int(length), fast=float(scaling.get('beta_fast') or 32),
                slow=float(scaling.get('beta_slow') or 1), size=turned)
  return base, scaled, size(every) ** 2 if every else 1.0


def describe(c, architecture, model_type):
  """Returns the fields of config.json that all these families have, of our configuration `c`."""
  m = c['model']
  if m['name'] != 'lm':
    raise errors.UserError(f'model.name={m["name"]!r}: {architecture} is a decoder; nearest: lm')
  if m.get('rotary_scaling'):
    raise errors.UserError('model.rotary_scaling: a configuration with scaled positions is only exported as '
                           'it was imported')
  base = float(m.get('rotary_base', 10000.0))
  return dict(architectures=[architecture], model_type=model_type, vocab_size=m['vocab_size'],
              hidden_size=m['d_model'], num_attention_heads=m['num_heads'], head_dim=m['head_dim'],
              num_key_value_heads=m.get('num_kv_heads') or m['num_heads'],
              num_hidden_layers=len(rules.letters(m['layers'])), rope_theta=base,
              rope_parameters=dict(rope_theta=base, rope_type='default'),
              rms_norm_eps=m.get('norm_epsilon', 1e-6), tie_word_embeddings=m.get('tie_embeddings', True),
              max_position_embeddings=max(2048, c.get('data', {}).get('length', 0)))


def last(c):
  """Returns (first block, last block) of our configuration, a dense one and the sparse one where both are."""
  letters = rules.letters(c['model']['layers'])
  return c['blocks'][letters[0]], c['blocks'][letters[-1]]


def sparse(block, router):
  """Returns the section of `block` with router and experts; raises UserError if it has no such router."""
  routed = [section for section in lookup.nested(block) if section.get('router')] or [{}]
  name = routed[0].get('router', {}).get('name')
  if name != router:
    raise errors.UserError(f'the last layer has router {name!r}; nearest: {router}')
  return routed[0]
