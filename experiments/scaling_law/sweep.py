"""What is trained: dense and S-BASE language models of several sizes and experts, at one number of tokens.

small   48 runs on two cores: 4 models, 4 numbers of experts, 3 seeds, 492k tokens each
large   96 runs for a GPU: 4 models up to 85M, 8 numbers of experts up to 128, 3 seeds, 33M bytes each
smoke   12 runs of 4 steps
"""

from stmoe.experiments import sizes

# (width, layers) of the models, numbers of experts.
MODELS = {'smoke': ((64, 2), (128, 2)), 'small': ((64, 2), (64, 4), (128, 4), (192, 6)),
          'large': ((128, 4), (256, 6), (512, 8), (768, 12))}
EXPERTS = {'smoke': (1, 2, 4), 'small': (1, 2, 8, 32), 'large': (1, 2, 4, 8, 16, 32, 64, 128)}
# (learning rate, width): of lm/quickstart and lm/stdlib, at their widths; not tuned for each model here.
PEAK = {'smoke': (4e-3, 128), 'small': (4e-3, 128), 'large': (1e-3, 256)}


def runs(size='small'):
  """Yields (name, experiment, overrides) for each model, number of experts and seed."""
  for seed in sizes.seeds(size):
    for d_model, layers in MODELS[size]:
      for experts in EXPERTS[size]:
        method = f'method=s_base,experts={experts}' if experts > 1 else 'method=dense'
        experiment, fields = sizes.model(size, method)
        fields |= model(d_model, layers, experts) | {'schedule.peak': peak(size, d_model), 'seed': seed}
        yield f'd{d_model}x{layers}_e{experts}', experiment, fields


def model(d_model, layers, experts):
  """Returns the overrides of a model: heads of 64, F = 4 D, every second feed-forward layer sparse.

  One expert is the dense model, which has no gate.
  """
  wide = 'blocks.m.experts.d_ff' if experts > 1 else 'blocks.m.d_ff'
  return {'model.d_model': d_model, 'model.num_heads': d_model // 64, 'model.layers': (('dm', layers // 2),),
          'blocks.d.d_ff': 4 * d_model, wide: 4 * d_model}


def peak(size, d_model):
  """Returns the learning rate: falling as 1 / width beyond the width that it was chosen for."""
  rate, width = PEAK[size]
  return rate * min(1.0, width / d_model)
