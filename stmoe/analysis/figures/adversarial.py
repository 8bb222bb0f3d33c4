"""Adversarial examples: images before and after an attack, their classes and the experts they reach."""

import numpy as np

from stmoe.analysis import canvas
from stmoe.runs import records

STEM = 'adversarial'
CAPTIONS = {STEM: 'Held-out images before and after the attack, and the difference, at the last evaluation. '
                  'Above: the class that the model sees (in red where it is wrong), then the expert that the '
                  'image reaches.'}
WRONG = canvas.PALETTE[1]


def draw(run):
  """Returns {stem: Figure} of a run whose target showed attacked images; {} of others."""
  _, shown = records.shown(run.path)
  if 'attacked_image' not in shown:
    return {}
  number = len(shown['image'])
  figure, axes = canvas.new(3, number, 0.9 * number, 3.5)
  moved = shown['attacked_image'] - shown['image']
  largest = max(float(np.abs(moved).max()), 1e-6)
  for i in range(number):
    for row, before in enumerate(('', 'attacked_')):
      picture(axes[row, i], shown[f'{before}image'][i], vmin=0, vmax=1)
      text, right = _text(shown, before, i)
      axes[row, i].set_title(text, fontsize=8.5, color=canvas.INK if right else WRONG)
    picture(axes[2, i], moved[i].mean(-1, keepdims=True), cmap='PuOr_r', vmin=-largest, vmax=largest)
  for ax, name in zip(axes[:, 0], ('image', 'attacked', 'difference')):
    canvas.label(ax, y=name)
  return {STEM: figure}


def picture(ax, image, **fields):
  """Draws an image [H,W,C] on `ax` without axes; one channel is grey, if `fields` name no colours."""
  grey = image.shape[-1] == 1
  ax.imshow(image[..., 0] if grey else np.clip(image, 0, 1), **dict(cmap='gray') | fields)
  ax.set_xticks([])
  ax.set_yticks([])
  ax.grid(False)


def _text(shown, before, i):
  """(class, and expert where there is a router; whether the class is right)."""
  seen = int(shown[f'{before}predicted'][i])
  expert = f' → {int(shown[f"{before}expert"][i])}' if f'{before}expert' in shown else ''
  return f'{seen}{expert}', seen == int(shown['label'][i])
