"""What T5 and Switch Transformers have in common: names and sizes."""

from stmoe import errors
from stmoe import ranges
from stmoe.interop import fields
from stmoe.interop import rules

# The feed-forward layer comes last in a block: place 1 in the encoder, 2 in the decoder.
PLACES = (('encoder', 1), ('decoder', 2))
BLOCK = '{stack}.block.{i}.layer.'
RULES = [
    ('embed/table', 'shared.weight'),
    ('head/w', 'lm_head.weight', rules.LINEAR),
    ('{stack}_bias/table', '{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
     rules.LINEAR),
    ('{stack}/norm/scale', '{stack}.final_layer_norm.weight'),
    ('{stack}/layers/{i}/attention/w{m}', BLOCK + '0.SelfAttention.{m}.weight', rules.LINEAR),
    ('{stack}/layers/{i}/attention_norm/scale', BLOCK + '0.layer_norm.weight'),
    ('{stack}/layers/{i}/cross/w{m}', BLOCK + '1.EncDecAttention.{m}.weight', rules.LINEAR),
    ('{stack}/layers/{i}/cross_norm/scale', BLOCK + '1.layer_norm.weight'),
    *((f'{stack}/layers/{{i}}/layer_norm/scale', f'{stack}.block.{{i}}.layer.{place}.layer_norm.weight')
      for stack, place in PLACES),
]
COPIES = {name: 'shared.weight' for name in ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight',
                                             'lm_head.weight')}
# A table that old checkpoints have and nothing uses.
IGNORED = (r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight',)


def ignored(c):
  """Returns regular expressions of tensors that are not read."""
  return IGNORED


def copied(c):
  """Returns the names of tensors that the format wants once more, where it was not an import: none."""
  return ()


def feed_forward(module, names):
  """Returns the rules of dense layers whose tensors (dict our name -> theirs) are in their `module`."""
  return [(f'{stack}/layers/{{i}}/layer/{ours}', f'{stack}.block.{{i}}.layer.{place}.{module}.{name}.weight',
           rules.LINEAR) for stack, place in PLACES for ours, name in names.items()]


def model(hf, encoder, decoder, tied, scaled):
  """Returns the section `model` of a config.json; patterns have one letter a layer.

  Args:
    tied:   the head is the embedding.
    scaled: the tied head divides by sqrt(D).
  """
  fields.only(hf, quantization_config=None, is_encoder_decoder=True)
  return dict(name='t5', vocab_size=fields.need(hf, 'vocab_size'), d_model=fields.need(hf, 'd_model'),
              num_heads=fields.need(hf, 'num_heads'), head_dim=fields.need(hf, 'd_kv'),
              encoder=rules.pattern(encoder), decoder=rules.pattern(decoder),
              num_buckets=fields.given(hf, 'relative_attention_num_buckets', ranges.Whole(4), 32),
              max_distance=fields.given(hf, 'relative_attention_max_distance', ranges.Count, 128),
              tie_embeddings=tied, scale_head=scaled,
              norm_epsilon=fields.given(hf, 'layer_norm_epsilon', ranges.PartOf1, 1e-6), dtype='float32',
              scan_layers=True, remat='elementwise')


def describe(c, architecture, model_type):
  """Returns the fields of config.json that both families have, of our configuration `c`."""
  m = c['model']
  if m['name'] != 't5':
    raise errors.UserError(f'model.name={m["name"]!r}: {architecture} is an encoder-decoder; nearest: t5')
  tied = m.get('tie_embeddings', False)
  return dict(architectures=[architecture], model_type=model_type, vocab_size=m['vocab_size'],
              d_model=m['d_model'], num_heads=m['num_heads'], d_kv=m['head_dim'],
              num_layers=len(rules.letters(m['encoder'])),
              num_decoder_layers=len(rules.letters(m['decoder'])),
              relative_attention_num_buckets=m.get('num_buckets', 32),
              relative_attention_max_distance=m.get('max_distance', 128), tie_word_embeddings=tied,
              layer_norm_epsilon=m.get('norm_epsilon', 1e-6), is_encoder_decoder=True,
              decoder_start_token_id=m.get('start_id', 0), forced_bos_token_id=m.get('forced_id'))
