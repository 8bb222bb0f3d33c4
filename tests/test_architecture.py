"""The rules of the code as tests: every file is parsed, and a broken rule is named with its line.

A rule is a function (file, tree, source) -> the violations. `BROKEN` holds, for every rule, code that must
not pass, so that a rule which stopped seeing anything fails too.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TREES = ('stmoe', 'configs', 'experiments', 'pallas_kernels')
FILES = sorted(path.relative_to(ROOT) for tree in TREES for path in (ROOT / tree).rglob('*.py'))

# Importable from anywhere; they import nothing of ours but each other.
ANYWHERE = {'axes', 'declared', 'errors', 'explained', 'files', 'lookup', 'modules', 'parsing', 'plugins',
            'ranges', 'router_state', 'sections', 'silence', 'value_ranges', '__init__'}
# A part may import itself and the parts named here, and nothing else of ours.
# The floors, from the ground up: a part may import itself, the parts named here, and nothing else of ours.
SPARSE = {'routers', 'experts', 'core', 'pallas_kernels'}
MODELS = {'models', 'layers', 'attention', 'heads', 'mixers', 'parts'} | SPARSE
DECODE = {'decode'} | MODELS
RUNS = {'runs', 'experiment'}
TRAIN = {'train', 'checkpoints', 'targets', 'data', 'metrics', 'analysis', 'hosts'} | RUNS | DECODE
USES = {'answer', 'aot', 'bench', 'conform', 'derive', 'surgery', 'interop', 'sweep'}
ARROWS = {
    'cli': USES | TRAIN,
    'api': USES | TRAIN,
    'experiments': USES | TRAIN,
    'answer': TRAIN | {'derive'},
    'bench': TRAIN | {'aot'},
    'aot': TRAIN,
    'conform': TRAIN | {'derive', 'surgery'},
    'derive': TRAIN | {'surgery', 'interop'},
    'sweep': {'analysis', 'hosts'} | RUNS,
    'train': TRAIN,
    'analysis': {'core', 'data'} | RUNS,
    'runs': {'experiment'},
    'checkpoints': {'hosts'} | RUNS,
    'hosts': set(),
    'decode': MODELS,
    'models': MODELS,
    'layers': SPARSE | {'parts'},
    'heads': SPARSE | {'parts', 'layers'},
    'mixers': SPARSE | {'parts'},
    'attention': SPARSE | {'parts', 'layers'},
    'parts': {'core'},
    'routers': {'core'},
    'experts': {'core'},
    'core': {'pallas_kernels'},
    'data': {'core'},
    'metrics': set(),
    'targets': {'core'},
    'surgery': {'core'},
    'interop': set(),
    'experiment': {'configs'},
    'configs': set(),
    'pallas_kernels': set(),
}
# What these parts may import from outside the standard library; the others are free.
OUTSIDE = {
    'configs': {'ml_collections'},
    'core': {'jax', 'flax', 'numpy'},
    'interop': {'numpy'},
    'pallas_kernels': {'jax', 'numpy'},
}
LIBRARIES = {'absl', 'flax', 'grain', 'jax', 'matplotlib', 'ml_collections', 'numpy', 'optax', 'orbax',
             'rich', 'sentencepiece', 'seqio', 'tensorboardX', 'tensorflow', 'tensorflow_datasets',
             'tensorflow_text'}
LONGEST_FILE, LONGEST_ROUTER = 500, 150


def part(file):
  """Returns the part of the code that a file belongs to: 'core', 'cli', 'configs', 'experiment', ..."""
  if file.parts[0] != 'stmoe':
    return file.parts[0]
  return file.parts[1] if len(file.parts) > 2 else file.stem


def imported(tree):
  """Yields (line, dotted name) of everything imported: 'stmoe.core.losses', 'jax.numpy'."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        yield node.lineno, '.relative'
      yield from ((node.lineno, f'{node.module}.{alias.name}') for alias in node.names)


def arrows(file, tree, source):
  """Imports run one way, and core, configs and kernels stay free of other libraries."""
  here = part(file)
  allowed = ANYWHERE if here in ANYWHERE else ANYWHERE | {here} | ARROWS[here]
  for line, name in imported(tree):
    first, _, rest = name.partition('.')
    if name == '.relative':
      yield line, 'relative import; write the full name'
    elif first in ('stmoe', 'pallas_kernels', 'configs', 'experiments'):
      target = (rest.partition('.')[0] or '__init__') if first == 'stmoe' else first
      if first in ('configs', 'experiments') or target not in allowed:
        yield line, f'{here} may not import {name}'
    elif first in LIBRARIES and here in OUTSIDE and first not in OUTSIDE[here]:
      yield line, f'{here} may not import {name}'
    if here == 'core' and first == 'flax' and name != 'flax.struct':
      yield line, 'core takes only flax.struct from flax'


def sizes(file, tree, source):
  """Files are short enough to read, routers shorter."""
  lines = len(source.splitlines())
  longest = LONGEST_ROUTER if part(file) == 'routers' else LONGEST_FILE
  if lines > longest:
    yield lines, f'{lines} lines, over {longest}'


def public_functions(body, described=''):
  """Yields (function, docstring of its class and its own) of the public functions and methods of `body`."""
  for node in body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      yield from public_functions(node.body, ast.get_docstring(node) or '')
    elif isinstance(node, ast.FunctionDef) and (not node.name.startswith('_') or node.name == '__call__'):
      yield node, described + (ast.get_docstring(node) or '')


SHAPE = re.compile(r'\[[^\]\n]*\]|any (array|shape)|elementwise|arrays? of one shape')


def shapes(file, tree, source):
  """Public functions of core and routers that handle arrays say their shapes in the docstring."""
  if part(file) not in ('core', 'routers'):
    return
  for node, docstring in public_functions(tree.body):
    names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    if node.args.args and names & {'jax', 'jnp', 'lax'} and not SHAPE.search(docstring):
      yield node.lineno, f'{node.name} handles arrays; its docstring names no shape'


def docstrings(file, tree, source):
  """Every module says in its first line what it is."""
  if source.strip() and not ast.get_docstring(tree):
    yield 1, 'no docstring'


LONGEST_SENTENCE = 25
CODE = re.compile(r'(``?)[^`]+\1')
# A command line, without the remark behind it.
COMMAND = re.compile(r'^\s*(--|stmoe [a-z]+|make [a-z]+(?=\s{2}|$)|python -m ).*?(?=\s{2}|$)')
# An entry of a list or a row of a table; each says something of its own.
ENTRY = re.compile(r'^\s*([-*]|\d+\.)\s|\S\s{2,}\S')
ENDS = re.compile(r'[.:;?!][)\'"]*$')
# Symbols, paths, numbers and shapes are no words.
WORD = re.compile(r"[AIa]|[A-Za-z]{2,}(['-][A-Za-z]+)*'?")


def paragraphs(docstring):
  """Yields the (line, token) of every paragraph and entry of `docstring`, without code and examples."""
  tokens, example = [], False
  text = CODE.sub(lambda code: '`' + '\n' * code[0].count('\n'), docstring)      # as many lines as before
  for number, line in enumerate(text.splitlines()):
    example = bool(line.strip()) and (example or line.lstrip().startswith('>>>'))
    if example or not line.strip() or COMMAND.match(line) or ENTRY.search(line):
      yield tokens
      tokens = []
    tokens += [] if example else [(number, token) for token in COMMAND.sub('', line).split()]
  yield tokens


def sentences(file, tree, source):
  """A sentence of a docstring is short enough to be understood at once; say one thing in each."""
  for node in ast.walk(tree):
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) or not ast.get_docstring(node):
      continue
    for tokens in paragraphs(ast.get_docstring(node)):
      ends = [place for place, (_, token) in enumerate(tokens, 1) if ENDS.search(token)]
      for start, end in zip([0] + ends, ends + [len(tokens)]):
        words = [token for _, token in tokens[start:end]]
        count = sum(bool(WORD.fullmatch(word.strip('.,:;?!()"\'[]*_'))) for word in words)
        if count > LONGEST_SENTENCE:
          line = node.body[0].lineno + tokens[start][0]
          yield line, f'a sentence of {count} words, over {LONGEST_SENTENCE}: {" ".join(words)}'


NNX = {'jit', 'grad', 'value_and_grad', 'scan', 'remat', 'Optimizer', 'sow', 'Dropout', 'pmap', 'cond',
       'while_loop'}
MODULES = {'pickle', 'marshal', 'dill', 'cloudpickle'}
BUILTINS = {'eval', 'exec', 'compile', '__import__'}


def forbidden(file, tree, source):
  """What was found to hide errors or run foreign code is not used."""
  for node in ast.walk(tree):
    if isinstance(node, ast.With):
      contexts = [ast.unparse(item.context_expr) for item in node.items]
      if any(context.rpartition('.')[2] == 'mesh' for context in contexts):
        yield node.lineno, '`with mesh:` does nothing here; use jax.set_mesh'
    if isinstance(node, ast.Attribute):
      if node.attr == 'sow' or ast.unparse(node.value) == 'nnx' and node.attr in NNX:
        yield node.lineno, f'{ast.unparse(node)}: use JAX\'s own transforms, return values'
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
      yield node.lineno, f'{node.func.id} runs text as code'
    if isinstance(node, ast.Name) and node.id == 'NotImplementedError':
      yield node.lineno, 'a stub'
  for line, name in imported(tree):
    if name.partition('.')[0] in MODULES:
      yield line, f'{name} runs foreign code when it reads'
  for number, line in enumerate(source.splitlines(), 1):
    if re.search(r'\b(TODO|FIXME|XXX|HACK)\b', line):
      yield number, 'unfinished'


TENSORFLOW = ('tensorflow', 'tensorflow_datasets', 'tensorflow_text', 'seqio', 'clu')
# The one module of ours that imports them at its top; to import it is to import TensorFlow.
DECLARE = 'stmoe.data.text.declare'


def tensorflow(file, tree, source):
  """TensorFlow, and what imports it, is imported only inside functions of stmoe/data."""
  functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
  inside = {id(node) for function in functions for node in ast.walk(function)}
  own = file.with_suffix('').parts == tuple(DECLARE.split('.'))
  for node in ast.walk(tree):
    if not isinstance(node, (ast.Import, ast.ImportFrom)):
      continue
    for line, name in imported(ast.Module([node], [])):
      heavy = name == DECLARE or name.partition('.')[0] in TENSORFLOW
      if heavy and not own and (part(file) != 'data' or id(node) not in inside):
        yield line, f'{name} outside a function of stmoe/data'


# Whose public functions say what they take and return; of `data` the sources.
TYPED = {'core', 'routers', 'experts', 'layers', 'attention', 'heads', 'mixers', 'parts', 'targets', 'models',
         'data', 'experiment', 'modules', 'lookup', 'axes', 'router_state'}


def typed(file, tree, source):
  """Public functions of the parts that methods are made of have types.

  Keyword-only parameters that `stmoe/declared.py` reads are free: those of constructors and of executors.
  Without an annotation they are no fields of a configuration.
  """
  if part(file) not in TYPED or part(file) == 'data' and 'sources' not in file.parts:
    return
  classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith('_')]
  made = [node for found in classes for node in found.body if getattr(node, 'name', None) == '__init__']
  for node in made + [node for node, _ in public_functions(tree.body)]:
    read = node in made or 'execute' in file.parts
    given = node.args.posonlyargs + node.args.args + ([] if read else node.args.kwonlyargs)
    given += [node.args.vararg] if node.args.vararg else []
    for argument in given:
      if argument.annotation is None and argument.arg not in ('self', 'cls', 'rngs'):
        yield node.lineno, f'{node.name}: {argument.arg} has no type'
    if node.returns is None and node not in made:
      yield node.lineno, f'{node.name} does not say what it returns'


RULES = (arrows, sizes, shapes, docstrings, sentences, forbidden, tensorflow, typed)


def violations(rule, file, source):
  return [f'{file}:{line}: {text}' for line, text in rule(file, ast.parse(source), source)]


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)
def test_code_keeps_the_rule(rule):
  found = [text for file in FILES
           for text in violations(rule, file, (ROOT / file).read_text(encoding='utf-8'))]
  assert not found, '\n'.join(['', rule.__doc__, *found])


def test_files_were_found():
  assert {part(file) for file in FILES} >= set(ARROWS) - {'experiments'} and len(FILES) > 50


# More words than a sentence may have, on one line and on many; nearly as many; and no words.
LONG, LINES, SHORT, FORMULA = 'long ' * 26, 'long\n' * 26, 'short ' * 22, 'x + y, [G,S,D] ' * 9

BROKEN = [
    (arrows, 'stmoe/core/x.py', 'from stmoe.routers import switch'),
    (arrows, 'stmoe/core/x.py', 'from flax import nnx'),
    (arrows, 'stmoe/core/x.py', 'import optax'),
    (arrows, 'stmoe/routers/x.py', 'from stmoe.experts import mlp'),
    (arrows, 'stmoe/layers/x.py', 'import stmoe.models.lm'),
    (arrows, 'stmoe/models/x.py', 'def f():\n  from stmoe.train import loop'),
    (arrows, 'stmoe/data/x.py', 'from stmoe import experiment'),
    (arrows, 'stmoe/axes.py', 'from stmoe.core import losses'),
    (arrows, 'stmoe/interop/x.py', 'import jax'),
    (arrows, 'stmoe/interop/x.py', 'from stmoe.train import state'),
    (arrows, 'stmoe/layers/x.py', 'from . import moe'),
    (arrows, 'configs/x/y.py', 'import jax'),
    (arrows, 'configs/x/y.py', 'from configs.x import paper'),
    (arrows, 'configs/x/y.py', 'from stmoe.layers import moe'),
    (arrows, 'pallas_kernels/x/y.py', 'from stmoe.core import losses'),
    (sizes, 'stmoe/core/x.py', 'x = 1\n' * 501),
    (sizes, 'stmoe/routers/x.py', 'x = 1\n' * 151),
    (shapes, 'stmoe/core/x.py', 'def f(x):\n  """Returns x."""\n  return jnp.sum(x)'),
    (shapes, 'stmoe/routers/x.py', 'class A:\n  def __call__(self, x):\n    return jax.nn.relu(x)'),
    (docstrings, 'stmoe/core/x.py', 'x = 1'),
    (sentences, 'stmoe/core/x.py', f'"""A {LONG}."""'),
    (sentences, 'configs/x/y.py', f'"""A.\n\nShort. A {LINES}."""'),
    (sentences, 'stmoe/cli/x.py', f'"""A.\n\n  stmoe train a    {LONG}"""'),
    (sentences, 'stmoe/core/x.py', f'class A:\n  """A {LONG}."""'),
    (sentences, 'stmoe/core/x.py', f'class A:\n  def f(x):\n    """A.\n\n    Args:\n      x: {LONG}."""'),
    (forbidden, 'stmoe/train/x.py', 'with mesh:\n  pass'),
    (forbidden, 'stmoe/train/x.py', 'with self.mesh:\n  pass'),
    (forbidden, 'stmoe/train/x.py', 'f = nnx.jit(f)'),
    (forbidden, 'stmoe/train/x.py', 'o = nnx.Optimizer(m)'),
    (forbidden, 'stmoe/train/x.py', 'self.sow("a", 1)'),
    (forbidden, 'stmoe/train/x.py', 'import pickle'),
    (forbidden, 'stmoe/train/x.py', 'eval("1")'),
    (forbidden, 'stmoe/train/x.py', 'raise NotImplementedError'),
    (forbidden, 'stmoe/train/x.py', '# TO' + 'DO: later'),
    (tensorflow, 'stmoe/data/x.py', 'import tensorflow as tf'),
    (tensorflow, 'stmoe/train/x.py', 'def f():\n  import seqio'),
    (tensorflow, 'stmoe/data/x.py', 'from stmoe.data.text import declare'),
    (typed, 'stmoe/core/x.py', 'def f(x) -> int:\n  return 1'),
    (typed, 'stmoe/core/x.py', 'def f(*, k) -> int:\n  return 1'),
    (typed, 'stmoe/lookup.py', 'def f(*names) -> int:\n  return 1'),
    (typed, 'stmoe/data/sources/x.py', 'def f(x: int):\n  return 1'),
    (typed, 'stmoe/layers/x.py', 'class A:\n  def __init__(self, d_model, *, rngs):\n    pass'),
    (typed, 'stmoe/layers/x.py', 'class A:\n  def __call__(self, x: int):\n    pass'),
]


@pytest.mark.parametrize('rule, file, source', BROKEN)
def test_rule_sees_broken_code(rule, file, source):
  assert violations(rule, pathlib.Path(file), source)


ALLOWED = [
    (arrows, 'stmoe/train/x.py', 'from stmoe import errors\nfrom stmoe.models import lm\nimport stmoe'),
    (arrows, 'configs/x/y.py', 'import ml_collections\nfrom stmoe.configs.x import paper\nimport math'),
    (shapes, 'stmoe/core/x.py', 'def f(x):\n  """Returns f32[G,S]."""\n  return jnp.sum(x)'),
    (shapes, 'stmoe/core/x.py', 'def capacity(tokens):\n  return tokens'),
    (sentences, 'stmoe/core/x.py', f'"""The {SHORT} a: a {SHORT} b. A {SHORT} d."""'),
    (sentences, 'stmoe/core/x.py', f'"""A.\n\n>>> f({LONG})\n{LONG}"""'),
    (sentences, 'stmoe/core/x.py', f'"""A {SHORT} of `{LINES}` and {FORMULA} a."""'),
    (sentences, 'configs/x/y.py', f'"""A.\n\n  stmoe train {LONG}\n  make long\n  --long {LONG}"""'),
    (sentences, 'stmoe/core/x.py', f'"""Holds\n  a    {SHORT}\n  b    {SHORT}"""'),
    (forbidden, 'stmoe/train/x.py', 'with jax.set_mesh(mesh):\n  jax.jit(f)'),
    (tensorflow, 'stmoe/data/x.py', 'def f():\n  import tensorflow as tf'),
    (tensorflow, 'stmoe/data/text/declare.py', 'import tensorflow as tf'),
    (typed, 'stmoe/core/x.py', 'def f(x: int, **fields) -> int:\n  return 1\ndef _g(x):\n  pass'),
    (typed, 'stmoe/core/execute/x.py', 'def execute(x: int, *, chunks=1) -> int:\n  return 1'),
    (typed, 'stmoe/layers/x.py', 'class A:\n  def __init__(self, d: int, *, k, rngs):\n    pass'),
    (typed, 'stmoe/data/text/x.py', 'def f(x):\n  return 1'),
]


@pytest.mark.parametrize('rule, file, source', ALLOWED)
def test_rule_leaves_good_code_alone(rule, file, source):
  assert not violations(rule, pathlib.Path(file), source)
