"""The sparse layers that `stmoe bench` times: of published models for accelerators, small ones for CPUs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
  """T tokens of a device, each through k of E experts of hidden width F; `gated` experts have three matrices.

  dtype: of activations and weights.
  """
  name: str
  tokens: int
  d_model: int
  d_ff: int
  num_experts: int
  k: int
  gated: bool
  dtype: str

  @property
  def flops(self):
    """FLOPs of a forward pass through the active experts: 2 per weight and row."""
    return 2 * (3 if self.gated else 2) * self.tokens * self.k * self.d_model * self.d_ff

  def sizes(self):
    """Returns the fields but the name, as a dict."""
    return {key: value for key, value in dataclasses.asdict(self).items() if key != 'name'}


def _cpu(name, tokens, d_model, num_experts, k):
  return Shape(name, tokens, d_model, 4 * d_model, num_experts, k, gated=False, dtype='float32')


def _accelerator(name, tokens, d_model, d_ff, num_experts, k, gated=True):
  return Shape(name, tokens, d_model, d_ff, num_experts, k, gated, dtype='bfloat16')


SHAPES = {shape.name: shape for shape in (
    _cpu('C1', 2048, 256, 8, 1),
    _cpu('C2', 4096, 256, 32, 2),
    _cpu('C3', 4096, 512, 64, 1),
    _cpu('C4', 8192, 512, 8, 2),
    _accelerator('S1', 32768, 768, 3072, 128, 1, gated=False),      # Switch-Base, 128 experts
    # ST-MoE-32B over 64 devices: the single expert of a device, with the rows that 64 devices send it.
    _accelerator('S2', 16384, 5120, 20480, 1, 1),
    _accelerator('S3', 16384, 4096, 14336, 8, 2),                   # Mixtral 8x7B
    _accelerator('S4', 16384, 2048, 1408, 64, 6),                   # DeepSeekMoE-16B, its routed experts
    _accelerator('S5', 32768, 2048, 1024, 64, 8),                   # OLMoE-1B-7B
    _accelerator('S6', 16384, 7168, 2048, 256, 8),                  # DeepSeek-V3
    _accelerator('S7', 32768, 4096, 1024, 128, 8),                  # fine-grained, of SonicMoE (unverified)
    _accelerator('S8a', 8192, 4096, 14336, 8, 2),                   # few large experts against
    _accelerator('S8b', 8192, 4096, 2048, 56, 14),                  # many small experts, equal active width
)}
