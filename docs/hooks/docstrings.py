"""Docstrings as mkdocstrings is to read them: notes are paragraphs, examples are blocks of code."""

import re

import griffe

# A line at the left that begins with a word and a colon, and the indented lines that go on with it.
NOTE = re.compile(r'^([A-Z][a-z]+(?: [a-z]+)?): (\S.*(?:\n +\S.*)*)', re.MULTILINE)
# Such a line that begins with a name, and a list that no empty line stands before.
FIELD = re.compile(r'^([a-z_]\w*(?:, \w+)*): +(\S.*(?:\n +\S.*)*)', re.MULTILINE)
LIST = re.compile(r'^(?!- )(.*\S)\n(?= *(?:1\.|-) )', re.MULTILINE)
EXAMPLE = re.compile(r'^( *)>>> (?:.*\n?)(?:\1.+\n?)*', re.MULTILINE)
# Code, which stays; or the place between two shapes, which would be a link: [B,M] [F].
SHAPES = re.compile(r'(^ *```.*?^ *```$|`[^`\n]+`)|\](\s?)(?=[\[(])', re.DOTALL | re.MULTILINE)


class Notes(griffe.Extension):
  """Hands every docstring to `notes`."""

  def on_object(self, *, obj, **unused):
    if obj.docstring:
      obj.docstring.value = notes(obj.docstring.value)


def notes(text):
  """Returns the docstring `text` with notes as paragraphs, their first word bold, and examples in fences."""
  text = NOTE.sub(lambda match: f'\n**{match[1]}**: {" ".join(match[2].split())}\n', text)
  text = FIELD.sub(lambda match: f'- `{match[1]}`: {" ".join(match[2].split())}', text)
  text = LIST.sub(r'\1\n\n', text)
  text = EXAMPLE.sub(lambda match: f'\n{match[1]}```pycon\n{match[0].rstrip()}\n{match[1]}```\n', text)
  return SHAPES.sub(lambda match: match[1] or f']{match[2]}\\', text)
