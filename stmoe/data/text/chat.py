"""Conversations written as one text, by the Jinja template of a model's tokenizer.

A template comes with a downloaded model. So it runs in Jinja's sandbox: it sees the conversation, the texts
of special tokens and a few harmless functions, and changes nothing. Its time and memory have no limit.
"""

import datetime
import functools
import json
import typing

import jinja2
from jinja2 import ext
from jinja2 import nodes
from jinja2 import sandbox
from jinja2 import utils

from stmoe import errors

# What a template raises on a conversation of another form than it expects.
WRONG = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError,
         RecursionError, MemoryError)
FIELDS = ('messages', 'tools', 'documents')


def text(vocabulary: typing.Any, conversation: dict, prompted: bool = True) -> str:
  """Returns the text that the template of `vocabulary` makes of a conversation, special tokens included.

  Its ids are `vocabulary.encode` of it and no others: the template writes its own first token.

  Args:
    conversation: dict with `messages`, a list of dict(role, content), and maybe `tools` and `documents`.
    prompted:     whether the beginning of the model's answer follows (add_generation_prompt).
  Raises:
    UserError: there is no template, it is none, or it refuses the conversation.
  """
  template = getattr(vocabulary, 'template', None)
  if template is None:
    raise errors.UserError('the vocabulary has no chat template (chat_template.jinja, or chat_template in '
                           'tokenizer_config.json beside tokenizer.json); nearest: without --chat')
  messages = [{key: value for key, value in message.items() if value is not None}
              for message in conversation['messages']]
  given = {field: conversation.get(field) for field in FIELDS} | dict(messages=messages)
  try:
    return _compiled(template).render(**vocabulary.named | given, add_generation_prompt=prompted)
  except WRONG as error:
    raise errors.UserError(f'the chat template says: {_line(error)}') from error


def checked(conversation: dict) -> dict:
  """Returns a conversation read from a file; raises ValueError where `messages` are no list of objects."""
  messages = conversation.get('messages')
  if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
    raise ValueError('is no object with "messages", a list of objects with role and content')
  return conversation


def _line(error):
  """An error's message on one line, or its kind."""
  return ' '.join(str(error).split())[:300] or type(error).__name__


@functools.lru_cache(8)
def _compiled(template):
  """The jinja2.Template of a text, with what templates of models expect to be there."""
  environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation])
  environment.filters['tojson'] = _json
  environment.globals = {'range': environment.globals['range'], 'namespace': Names, 'dict': _dict,
                         'raise_exception': _refuse, 'strftime_now': _now}
  return environment.from_string(template)


class Generation(ext.Extension):
  """The block {% generation %}, which marks what a model has written; here it is its content."""
  tags = {'generation'}

  def parse(self, parser):
    """Returns the node of the block."""
    line = next(parser.stream).lineno
    return nodes.Scope(parser.parse_statements(('name:endgeneration',), drop_needle=True)).set_lineno(line)


class Names(utils.Namespace):
  """Jinja's namespace without names that Python has a meaning for."""

  def __init__(*args, **named):           # a template may call a name `self`
    self, *first = args
    for name in {**dict(*first), **named}:
      Names._check(name)
    utils.Namespace.__init__(self, *first, **named)

  def __setitem__(self, name, value):
    Names._check(name)
    utils.Namespace.__setitem__(self, name, value)

  @staticmethod
  def _check(name):
    if str(name).startswith('_'):
      raise jinja2.exceptions.SecurityError(f'a name that begins with _ : {name}')


def _dict(*first, **named):
  return dict(*first, **named)


def _refuse(message):
  raise jinja2.TemplateError(message)


def _now(form):
  return datetime.datetime.now().strftime(form)


def _json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
  """JSON as text: Jinja's own filter writes it for pages."""
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                    sort_keys=sort_keys)
