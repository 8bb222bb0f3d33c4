"""Fields of a config.json that a family does not read: those that change what a model computes are refused.

Who reads a config.json asks for its fields. What nobody asked for is of no weight where it is null, off or
NEUTRAL. It is refused where its name is one of layers or numbers that models here do not have (STRANGE):
state spaces, convolutions, other kinds of attention, other positions, quantised tensors. Others are told.
"""

import re

from stmoe import errors
from stmoe.interop import rules

# How to train, to load, to generate, to name things; sizes of what the model has not.
NEUTRAL = re.compile(
    r'_.*|architectures|model_type|(torch_)?dtype|transformers.*|auto_map|name|.*name_or_path|license|'
    r'language|.*dropout.*|.*layerdrop|init.*|.*jitter.*|.*(aux|z)_loss.*|seq_aux|ep_size|use_cache|'
    r'return_.*|output_(past|attentions|hidden_states|router_logits|scores)|pretraining_tp|'
    r'.*attn_implementation|gradient_checkpointing|torchscript|use_bfloat16|pruned_heads|'
    r'chunk_size_feed_forward|.*_token_ids?|.*_word_embeddings|tie_encoder_decoder|is_decoder|task_.*|'
    r'problem_type|finetuning_task|id2label|label2id|num_labels|classifier_.*|tokenizer_class|prefix|'
    r'unsloth.*|max_position_embeddings|n_positions|seq_length|model_max_length|initial_context_length|'
    r'experts_per_token|num_nextn_predict_layers|num_hidden_layers|(moe_)?intermediate_size|n_group|'
    r'topk_group|max_window_layers|(min|max)_(new_)?(length|tokens)|num_beam.*|num_return_sequences|'
    r'do_sample|early_stopping|temperature|top_[kp]|typical_p|(repetition|length|diversity)_penalty|'
    r'.*no_repeat_ngram_size|bad_words_ids|remove_invalid_values|exponential_decay_length_penalty|'
    r'suppress_tokens|begin_suppress_tokens')
STRANGE = re.compile(
    r'mamba|ssm|state_|conv|hybrid|linear|delta|rwkv|recurrent|lru|block_type|layer_types|attn_layer|'
    r'attn_type|attention_(layer|type|pattern|chunk|class)|index_|indexer|chunk|softcap|multiplier|'
    r'logits?_scal|query_pre_attn|qk_|use_qk|parallel|rope|rotary|alibi|position_embedding_type|quant|'
    r'compress|lora|sink|clip|window|sliding|residual|nope|sandwich|zero_expert|identity|bias')


class Asked(dict):
  """A config.json, a dict, that knows the names which it was asked for."""

  def __init__(self, hf, names=None):
    super().__init__(hf)
    self.names = set() if names is None else names

  def __getitem__(self, key):
    self.names.add(key)
    return super().__getitem__(key)

  def __contains__(self, key):
    self.names.add(key)
    return super().__contains__(key)

  def __or__(self, other):
    return Asked(dict(self) | other, self.names)

  def __ror__(self, other):
    return Asked(other | dict(self), self.names)

  def get(self, key, default=None):
    """Returns the field `key`, `default` where it is missing."""
    self.names.add(key)
    return super().get(key, default)


def configured(name, family, hf, tied, say=print):
  """Returns the sections model, blocks and losses of a config.json of the family `name`, the module `family`.

  Args:
    tied: the head is the embedding.
    say:  called with a line that names unknown fields.
  Raises:
    UserError: naming a field, for a config.json of another model.
  """
  asked = Asked(hf)
  sections = family.configure(asked, tied)
  unknown = [key for key, value in hf.items() if not (
      key in asked.names or NEUTRAL.fullmatch(key) or off(hf, key, value))]
  strange = next((key for key in unknown if STRANGE.search(key.lower())), None)
  if strange is not None:
    raise errors.UserError(f'config.json: {strange}={hf[strange]!r:.60} is not supported: the family '
                           f'{name} has no such field; nearest: without it')
  if unknown:
    say(f'config.json: not read are {len(unknown)} fields that the family {name} has not: '
        f'{rules.some(unknown)}')
  return sections


def off(hf, key, value):
  """Returns whether the field `key` says with its `value` that something is not there."""
  return not value or key == 'sliding_window' and hf.get('use_sliding_window') is False
