"""The texts on which rewiring is measured: excerpts of prose, and of the kind that models were trained on.

licences   of numpy, matplotlib and jax, which every installation has: law in English, no code
code       held-out files of the standard library

The topics of Python's help() are no such prose: their file is a part of the text that models are trained on.
"""

import importlib.metadata
import re

from stmoe.data.text import corpus

PACKAGES = ('numpy', 'matplotlib', 'jax')
EXCERPTS, BYTES = 32, 1024               # evenly spaced over a text, of these many bytes
OTHER, OWN = 'licences', 'code'


def licences():
  """Returns the files of licences of PACKAGES, every paragraph once."""
  found = [file.read_text(encoding='utf-8') for name in PACKAGES
           for file in sorted(importlib.metadata.distribution(name).files, key=str)
           if '.dist-info' in str(file) and re.search('LICEN[CS]E', file.name, re.IGNORECASE)]
  return '\n\n'.join(dict.fromkeys(part for text in found for part in re.split(r'\n\s*\n', text)))


def code():
  """Returns the held-out files of the standard library, one after the other."""
  return ''.join(text for _, text in corpus.stdlib()['validation'])


def write(folder):
  """Writes a file of excerpts of each text into `folder`; returns dict name -> path."""
  folder.mkdir(parents=True, exist_ok=True)
  paths = {name: folder / f'{name}.txt' for name in (OTHER, OWN)}
  for name, text in ((OTHER, licences()), (OWN, code())):
    content = text.encode()
    apart = len(content) // EXCERPTS
    parts = [content[at * apart:at * apart + BYTES] for at in range(EXCERPTS)]
    # A character that the end of an excerpt cuts is left out.
    paths[name].write_bytes(b''.join(part.decode(errors='ignore').encode() for part in parts))
  return paths
