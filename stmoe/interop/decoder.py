"""What families of decoder-only models have in common: names, sizes, rotary positions."""

import math

from stmoe import errors
from stmoe import explained
from stmoe import lookup
from stmoe import ranges
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
    ('head/b', 'lm_head.bias'),
    ('head_bias', 'lm_head.bias'),                                   # of a tied head
    *((f'{ours}/{here}', f'{theirs}.{there}')
      for ours, theirs in (('decoder/norm', 'model.norm'),
                           ('decoder/layers/{i}/attention_norm', LAYER + 'input_layernorm'),
                           ('decoder/layers/{i}/layer_norm', LAYER + 'post_attention_layernorm'))
      for here, there in (('scale', 'weight'), ('bias', 'bias'))),
]
COPIES = {'lm_head.weight': 'model.embed_tokens.weight'}             # where the head is tied
IGNORED = (r'.*\.rotary_emb\.inv_freq',)
# Fields of rotary positions of all types; those of each are in `interop/positions`.
COMMON = ('rope_theta', 'rope_type', 'partial_rotary_factor')
KINDS = ('full_attention', 'sliding_attention')                      # of layers, in `layer_types`


def ignored(c):
  """Returns regular expressions of tensors that are computed anew and not read."""
  return IGNORED


def copied(c):
  """Returns the names of tensors that the format wants once more, where it was not an import: none here."""
  return ()


def glu(ours, theirs, names=('gate_proj', 'up_proj', 'down_proj')):
  """Returns the rules of a gated feed-forward layer whose three matrices are called `names`; biases too."""
  bank, layer = '[{e}]' if '{e}' in theirs else '', f'decoder/layers/{{i}}/layer/{ours}'
  named = list(zip('igo', names))
  return [*((f'{layer}w{w}{bank}', f'{LAYER}{theirs}{name}.weight', rules.LINEAR) for w, name in named),
          *((f'{layer}b{w}{bank}', f'{LAYER}{theirs}{name}.bias') for w, name in named)]


def routed(theirs='mlp.', names=('gate_proj', 'up_proj', 'down_proj')):
  """Returns the rules of a router without bias, called gate, and of its experts; `names` as in `glu`."""
  return [('decoder/layers/{i}/layer/router/w', f'{LAYER}{theirs}gate.weight', rules.LINEAR),
          *glu('experts/', theirs + 'experts.{e}.', names)]


def model(hf, layers, tied, theta=10000.0, part=None, **more):
  """Returns the section `model` of a config.json; `layers` has one letter a layer.

  Args:
    theta, part: as for `rope`; with a `part` the section `attention` among `more` gets the rest of the head.
    more:        fields of the section.
  """
  heads, width = fields.need(hf, 'num_attention_heads'), fields.need(hf, 'hidden_size')
  base, scaling, _ = rope(hf, theta, part)
  fields.only(hf, quantization_config=None, is_encoder_decoder=False)
  kv_heads = fields.given(hf, 'num_key_value_heads', ranges.Count, heads)
  head_dim = fields.given(hf, 'head_dim', ranges.Count, width // heads)
  if part is not None:
    turned = _turned(hf, head_dim, part)
    more = more | dict(attention=more['attention'] | dict(nope_dim=head_dim - turned))
    head_dim = turned
  return dict(name='lm', vocab_size=fields.need(hf, 'vocab_size'), d_model=width, num_heads=heads,
              head_dim=head_dim, num_kv_heads=None if kv_heads == heads else kv_heads,
              layers=rules.pattern(layers), rotary_base=base, rotary_scaling=scaling, tie_embeddings=tied,
              scale_head=False, norm_epsilon=fields.need(hf, 'rms_norm_eps', ranges.PartOf1),
              dtype='float32', scan_layers=True, remat='elementwise') | more


def dense(d_ff, activation):
  """Returns a dense block."""
  return dict(layer='dense', d_ff=d_ff, activation=activation, gated=True)


def moe(router, d_ff, activation):
  """Returns the fields of a dropless sparse layer."""
  return dict(executor='blocks', group_size=None, router=router,
              experts=dict(name='glu', d_ff=d_ff, activation=activation))


def head_norms(hf):
  """Returns the section of attention with a norm of each head's query and key."""
  return dict(name='attention', qk_norm=fields.need(hf, 'rms_norm_eps', ranges.PartOf1), qk_norm_over='head')


def placed(hf, number):
  """Returns a letter for each of `number` layers, d dense or m sparse, of a config.json of Qwen's form."""
  dense = set(fields.given(hf, 'mlp_only_layers', ranges.Many(ranges.Natural), ()))
  step = fields.given(hf, 'decoder_sparse_step', ranges.Count, 1)
  return ''.join('d' if i in dense or (i + 1) % step else 'm' for i in range(number))


def windows(hf, number, kinds):
  """Returns the window of each of `number` layers of a config.json, None where a layer sees all before it.

  Args:
    kinds: `layer_types` of the first layers where the field is not there; they repeat.
  """
  usual = [kinds[i % len(kinds)] for i in range(number)]
  kinds = fields.given(hf, 'layer_types', ranges.Many(ranges.Choice(*KINDS)), usual)
  if len(kinds) != number:
    raise errors.UserError(f'config.json: layer_types names {len(kinds)} layers, and num_hidden_layers='
                           f'{number}; nearest: {number} entries')
  width = fields.need(hf, 'sliding_window') if KINDS[1] in kinds else None
  return [width if kind == KINDS[1] else None for kind in kinds]


def windowed(letters, blocks, windows):
  """Returns (letters, blocks) where a layer with a window has the capital of the letter without.

  Args:
    letters, blocks: a letter for each layer, and the section blocks.
    windows: of `windows`.
  """
  cased = [letter if window is None else letter.upper() for letter, window in zip(letters, windows)]
  own = {letter: {} if window is None else dict(window=window) for letter, window in zip(cased, windows)}
  return ''.join(cased), {letter: blocks[letter.lower()] | window for letter, window in own.items()}


def describe_windows(c):
  """Returns the fields sliding_window and layer_types of our configuration `c`, with one width of windows."""
  blocks = [c['blocks'][letter] for letter in rules.letters(c['model']['layers'])]
  windows = [block.get('window') or c['model'].get('window') for block in blocks]
  widths = sorted({*windows} - {None})
  if len(widths) > 1:
    raise errors.UserError(f'blocks.*.window: the format has one width of windows, not {widths}; nearest: '
                           f'{widths[-1]}')
  return dict(sliding_window=widths[0] if widths else None,
              layer_types=[KINDS[window is not None] for window in windows])


def losses(hf):
  """Returns the router losses of a config.json, for training on."""
  balance = fields.given(hf, 'router_aux_loss_coef', ranges.NonNegative, 0.0)
  return dict(balance=(float(balance), 'mean'), z=(0.0, 'mean'))


def rope(hf, theta=10000.0, part=None):
  """Returns (base, section `model.rotary_scaling` or None, factor of the attention's logits).

  Fields of both spellings count: rope_parameters of transformers 5, rope_theta and rope_scaling before. A
  field that the type does not have is refused. So are two fields that disagree: versions take one or the
  other.

  Args:
    theta: the base where no field says it.
    part:  the part of each head that is turned where no field says it; None: only whole heads are.
  """
  given_fields = _rope_fields(hf)
  base = float(fields.given(given_fields, 'rope_theta', ranges.Above1, theta))
  kind = fields.given(given_fields, 'rope_type', ranges.Text, 'default')
  if not lookup.has('positions', kind):
    kinds = lookup.available('positions')
    raise errors.UserError(f'config.json: rotary positions of type {kind!r:.60} are not supported'
                           f'{errors.nearest(kind, kinds)} (there are: {", ".join(kinds)})')
  if part is None:
    fields.only(given_fields, partial_rotary_factor=1)
  positions = lookup.module('positions', kind)
  extra = next((key for key in given_fields if key not in (*COMMON, *positions.FIELDS)), None)
  if extra:
    raise errors.UserError(f'config.json: {extra}={given_fields[extra]!r:.60} of rotary positions of type '
                           f'{kind} is not supported{errors.nearest(extra, positions.FIELDS)}')
  return (base, *positions.configure(hf, given_fields))


def _turned(hf, head_dim, part):
  """How many of the `head_dim` numbers of a head are turned; `part` where no field says it."""
  part = fields.given(_rope_fields(hf), 'partial_rotary_factor', ranges.PartOf1, part)
  number = int(head_dim * part)
  if number % 2 or not number:
    raise errors.UserError(f'config.json: partial_rotary_factor={part} of head_dim={head_dim} turns {number} '
                           f'numbers, and rotary positions turn pairs; nearest: {(number + 1) // 2 * 2 or 2}')
  return number


def _rope_fields(hf):
  """The fields of rotary positions that a config.json sets, under the names of rope_parameters."""
  stated = {key: hf[key] for key in ('rope_theta', 'partial_rotary_factor') if hf.get(key) is not None}
  for group in ('rope_parameters', 'rope_scaling'):
    for key, value in fields.given(hf, group, ranges.Section, {}).items():
      key = 'rope_type' if key == 'type' else key
      if value is not None and stated.setdefault(key, value) != value:
        raise errors.UserError(f'config.json says {key} of rotary positions twice: {stated[key]!r:.40} and '
                               f'{value!r:.40}')
  return stated


def describe(c, architecture, model_type):
  """Returns the fields of config.json that all these families have, of our configuration `c`."""
  m = c['model']
  if m['name'] != 'lm':
    raise errors.UserError(f'model.name={m["name"]!r}: {architecture} is a decoder; nearest: lm')
  head_dim, turned = _head(m)
  rope_fields, lengths = _describe_rope(m)
  return dict(architectures=[architecture], model_type=model_type, vocab_size=m['vocab_size'],
              hidden_size=m['d_model'], num_attention_heads=m['num_heads'], head_dim=head_dim,
              num_key_value_heads=m.get('num_kv_heads') or m['num_heads'],
              num_hidden_layers=len(rules.letters(m['layers'])), **rope_fields, **turned,
              rms_norm_eps=m.get('norm_epsilon', 1e-6), tie_word_embeddings=m.get('tie_embeddings', True),
              **dict(max_position_embeddings=max(2048, c.get('data', {}).get('length', 0))) | lengths)


def _describe_rope(m):
  """(the fields of rotary positions in both spellings, lengths that go with them) of section `model`."""
  base, scaling = float(m.get('rotary_base', 10000.0)), m.get('rotary_scaling') or dict(name='default')
  logits = (m.get('attention') or {}).get('logit_scale', 1.0)
  stated, lengths = lookup.module('positions', scaling['name']).describe(scaling, logits)
  stated, turned = dict(rope_type=scaling['name'], **stated), _head(m)[1]
  before = dict(rope_scaling=stated) if m.get('rotary_scaling') else {}        # of transformers 4
  return dict(rope_theta=base, rope_parameters=dict(rope_theta=base, **stated, **turned), **before), lengths


def _head(m):
  """(P, the fields that say which part of it is turned, {} for all) of section `model`."""
  attention = m.get('attention') or {}
  rest = attention.get('nope_dim', 0) if attention.get('name') == 'attention' else 0
  head_dim = m['head_dim'] + rest
  part = m['head_dim'] / head_dim
  part = part if int(head_dim * part) == m['head_dim'] else math.nextafter(part, 1.0)    # readers round down
  return head_dim, dict(partial_rotary_factor=part) if rest else {}


def last(c):
  """Returns (the last dense block or None, the last other block or else the last) of our configuration."""
  blocks = [c['blocks'][letter] for letter in rules.letters(c['model']['layers'])]
  is_dense = lambda block: block['layer'] == 'dense'
  return (next(filter(is_dense, blocks[::-1]), None),
          next((block for block in blocks[::-1] if not is_dense(block)), blocks[-1]))


def attention(c):
  """Returns section `model.attention` of our configuration `c`, {} where the model's own is meant."""
  return c['model'].get('attention') or {}


def balance(c):
  """Returns the weight of the balance loss in our configuration `c`."""
  return c.get('losses', {}).get('balance', (0,))[0]


def dense_layers(c):
  """Returns the numbers of the dense layers of our configuration, in their order."""
  letters = rules.letters(c['model']['layers'])
  return [i for i, letter in enumerate(letters) if c['blocks'][letter]['layer'] == 'dense']


def softmax_router(hf, num_experts, normalized):
  """Returns the section of a router of softmax gates over all experts, `normalized`: over their sum.

  Raises UserError for one normalised choice: transformers then has a gate of 1, routers here the probability.
  """
  k = fields.need(hf, 'num_experts_per_tok')
  if normalized and k == 1:
    raise errors.UserError('config.json: num_experts_per_tok=1 with gates over their sum, all 1, is not '
                           'supported; nearest: num_experts_per_tok=2, or norm_topk_prob=false')
  return dict(name='deepseek_moe', num_experts=num_experts, k=k, normalize_gates=normalized)


def normalized(router):
  """Returns whether gates of our `router` section are over their sum; the gate of one choice never is."""
  return router.get('normalize_gates', False) and router.get('k', 2) > 1


def sparse(block, router):
  """Returns the section of `block` with router and experts; raises UserError without such ones."""
  routed = [section for section in lookup.nested(block) if section.get('router')] or [{}]
  name = routed[0].get('router', {}).get('name')
  if name != router:
    raise errors.UserError(f'the last layer has router {name!r}; nearest: {router}')
  experts = routed[0]['experts']
  if 'inner' in experts:
    what = explained.line('experts', experts['name']).rstrip('.')
    raise errors.UserError(f'the last layer has experts {experts["name"]!r} around '
                           f'{experts["inner"].get("name")!r} ({what}), for which the family has no form; '
                           f'nearest: a run whose experts are {experts["inner"].get("name")} alone')
  if 'd_ff' not in experts:
    raise errors.UserError(f'the last layer has experts {experts["name"]!r}; nearest: glu')
  return routed[0]
