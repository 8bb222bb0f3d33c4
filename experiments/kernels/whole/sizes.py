"""The models that are timed whole: Mixtral's form, or Llama's where there is one expert. float32."""

# B, T: of a batch in training. V, D, L, H: vocabulary, width, layers, heads. E, k, F: of experts.
SIZES = {
    'small': dict(B=8, T=256, V=4096, D=192, L=6, H=3, E=8, k=2, F=384),
    'fine': dict(B=8, T=256, V=4096, D=192, L=6, H=3, E=32, k=4, F=192),
    'wide': dict(B=4, T=256, V=8192, D=512, L=4, H=8, E=8, k=2, F=1024),
    'dense': dict(B=8, T=256, V=4096, D=192, L=6, H=3, E=1, k=1, F=768),
    'tiny': dict(B=2, T=8, V=64, D=16, L=2, H=2, E=4, k=2, F=32),
}
BALANCE = 0.01                           # coefficient of the balance loss, of both libraries
RATE = 1e-3                              # of AdamW, constant


def forms(size: dict) -> tuple[str, ...]:
  """Returns the implementations of experts that transformers has for a model; '' where it has no experts."""
  return ('eager', 'grouped_mm', 'batched_mm') if size['E'] > 1 else ('',)


def config(size: dict) -> dict:
  """Returns the config.json of a size, as `transformers.AutoConfig.for_model` takes it."""
  shared = dict(vocab_size=size['V'], hidden_size=size['D'], intermediate_size=size['F'],
                num_hidden_layers=size['L'], num_attention_heads=size['H'], num_key_value_heads=size['H'],
                max_position_embeddings=4 * size['T'], tie_word_embeddings=False)
  if size['E'] == 1:
    return dict(shared, model_type='llama')
  return dict(shared, model_type='mixtral', num_local_experts=size['E'], num_experts_per_tok=size['k'],
              sliding_window=None, output_router_logits=True, router_aux_loss_coef=BALANCE)
