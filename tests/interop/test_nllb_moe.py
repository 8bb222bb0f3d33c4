"""NLLB-MoE: config.json to sections and back, names of all tensors, fields that are refused."""

from flax import nnx
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.interop import fields
from stmoe.interop import rules

HF = dict(architectures=['NllbMoeForConditionalGeneration'], model_type='nllb-moe', vocab_size=40, d_model=8,
          encoder_layers=4, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
          encoder_ffn_dim=12, decoder_ffn_dim=10, encoder_sparse_step=2, decoder_sparse_step=3, num_experts=6,
          expert_capacity=5, moe_eval_capacity_token_fraction=0.3, moe_token_dropout=0.1,
          normalize_router_prob_before_dropping=False, activation_function='relu', scale_embedding=True,
          pad_token_id=1, is_encoder_decoder=True, tie_word_embeddings=True, router_aux_loss_coef=0.001,
          router_z_loss_coef=0.001)


def configure(**changes):
  name, family = fields.family(HF | changes)
  assert name == 'nllb_moe'
  return family, family.configure(HF | changes, True)


@pytest.mark.parametrize('changes', [
    {}, dict(normalize_router_prob_before_dropping=True), dict(scale_embedding=False),
    dict(moe_eval_capacity_token_fraction=0), dict(pad_token_id=0, moe_token_dropout=0.0)], ids=str)
def test_what_is_described_means_the_same_model(changes):
  family, made = configure(**changes)
  described = family.describe(made)
  assert fields.differences(made, family.configure(described, True)) == []
  known = {key: value for key, value in (HF | changes).items() if key != 'pad_token_id'}
  assert {key: described[key] for key in known} == known


def test_every_array_has_its_tensor():
  family, made = configure()
  make = lookup.recipe('model', made['model'])
  model = nnx.eval_shape(lambda: make(blocks=made['blocks'], rngs=nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  shape = {place.tensor: place.there for place in rules.places(dict(params=params), family.table(made))}
  assert shape['model.shared.weight'] == (40, 8) and shape['model.encoder.layer_norm.bias'] == (8,)
  assert shape['model.encoder.layers.1.ffn.experts.expert_5.fc1.weight'] == (12, 8)
  assert shape['model.decoder.layers.2.ffn.experts.expert_0.fc2.bias'] == (8,)
  assert shape['model.decoder.layers.2.cross_attention.out_proj.bias'] == (8,)
  assert shape['model.decoder.layers.0.ffn.fc1.weight'] == (10, 8)
  assert shape['model.encoder.layers.3.ffn.router.classifier.weight'] == (6, 8)
  attentions, per = 4 + 2 * 3, 2 * (4 + 1)                           # matrices, a norm; with biases
  experts, dense = 2 * (6 * 4 + 1) + (6 * 4 + 1), (2 + 2) * 4
  assert len(shape) == 1 + 2 * 2 + attentions * per + 7 * 2 + experts + dense


def test_the_embedding_grows_and_positions_start_after_padding():
  model = configure()[1]['model']
  assert model['first_position'] == 2 and model['embed_factor'] == pytest.approx(np.sqrt(8))
  assert configure(scale_embedding=False, pad_token_id=4)[1]['model']['first_position'] == 5


@pytest.mark.parametrize('changes, says', [
    (dict(decoder_attention_heads=4), 'decoder_attention_heads=4'),
    (dict(second_expert_policy='random'), "second_expert_policy='random'"),
    (dict(batch_prioritized_routing=True), 'batch_prioritized_routing'),
    (dict(router_bias=True), 'router_bias'),
    (dict(router_ignore_padding_tokens=True), 'router_ignore_padding_tokens'),
    (dict(activation_function='gelu'), "activation_function='gelu'"),
    (dict(expert_capacity=None, moe_eval_capacity_token_fraction=0.0), 'moe_eval_capacity_token_fraction=0'),
    (dict(moe_eval_capacity_token_fraction=1.5), 'moe_eval_capacity_token_fraction=1.5'),
    (dict(quantization_config=dict(quant_method='awq')), 'quantization_config')])
def test_what_is_not_supported_is_named(changes, says):
  with pytest.raises(errors.UserError, match=says):
    configure(**changes)
