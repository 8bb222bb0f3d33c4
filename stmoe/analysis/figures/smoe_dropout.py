"""How many experts of a token were active during training (SMoE-Dropout, arXiv:2303.01610)."""

from stmoe.analysis import canvas

CAPTIONS = {'active_k': 'Active experts of a token during training, by the schedule, and the training loss. '
                        'How the loss depends on their number in evaluation is figure sweep.'}


def draw(run):
  """Returns dict stem -> Figure: 'active_k', where the run logged moe/active_k."""
  steps, k = run.series('moe/active_k')
  if not len(steps):
    return {}
  figure, axes = canvas.new(1, 2, 8.2, 3.2)
  # A line of metrics tells the k of the step before it.
  axes[0, 0].step([0, *steps], [k[0], *k], where='pre', color=canvas.PALETTE[0], lw=1.8)
  axes[0, 0].set_ylim(bottom=0)
  canvas.label(axes[0, 0], 'optimizer steps', 'active experts of a token')
  at, loss = run.series('loss/ce')
  axes[0, 1].plot(at, loss, color=canvas.FAINT, lw=1)
  canvas.label(axes[0, 1], 'optimizer steps', 'training loss (nats per token)')
  for ax in axes[0]:
    canvas.engineering(ax.xaxis)
    ax.set_xlim(left=0)
  return {'active_k': figure}
