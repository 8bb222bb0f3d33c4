"""Kinds of files that a configuration may name, where they lie, and how a file's text tells its kind.

A kind that is told by its text may lie outside of the project, as a plugin.
"""

import ast
import pathlib

from stmoe import errors

# The key of a configuration under which a module is named -> the package it lives in.
PACKAGES = {
    'model': 'stmoe.models',
    'layer': 'stmoe.layers',
    'mixer': 'stmoe.mixers',         # of the model multi_task: the experts of several tasks
    'attention': 'stmoe.attention',
    'around': 'stmoe.parts.around',  # blocks: what they stand in
    'adapter': 'stmoe.parts.adapters',   # of models: what stands beside their matrices
    'rotary_scaling': 'stmoe.parts.rotary_scaling',   # of rotary positions, for longer texts
    'network': 'stmoe.parts.networks',    # over the nodes of graphs
    'head': 'stmoe.heads',           # of models whose predictions are no tokens
    'target': 'stmoe.targets',       # what a model is to predict: section loss
    'router': 'stmoe.routers',
    'experts': 'stmoe.experts',
    'virtual': 'stmoe.experts.virtual',   # experts without a bank: a tuple of names
    'executor': 'stmoe.core.execute',
    'strategy': 'stmoe.decode.strategies',
    'source': 'stmoe.data.sources',
    'objective': 'stmoe.data.text.objectives',   # of a source of texts
    'tasks': 'stmoe.data.text.families',   # of a source of texts: files of tasks
    'metric': 'stmoe.metrics',
    'family': 'stmoe.interop.families',   # of checkpoints made elsewhere
    'packing': 'stmoe.interop.packings',  # of their tensors in fewer bits
    'positions': 'stmoe.interop.positions',   # types of rotary positions in checkpoints made elsewhere
    'writer': 'stmoe.runs.writers',   # of metrics to a service: log.writers
    'peer': 'stmoe.bench.peers',   # other libraries to time
    'piece': 'stmoe.bench.device.pieces',   # of the accelerator kit: what to measure
    'surgery': 'stmoe.surgery',      # on trained parameters
    'factorisation': 'stmoe.surgery',   # surgeries that make a dense model sparse
    'adaptation': 'stmoe.surgery',      # put adapters beside parameters, which stay as they are
    'law': 'stmoe.analysis.scaling.laws',   # of the loss against size, tokens and experts
    'launcher': 'stmoe.sweep.launchers',
    'figure': 'stmoe.analysis.figures',   # that a single method has
}
# Sections of a configuration that name a function -> the module in which such functions stand together.
MODULES = {'optimizer': 'stmoe.train.optimizers', 'schedule': 'stmoe.train.schedules'}
KINDS = PACKAGES | MODULES           # what a plugin may hold
# What several modules of a kind are called: `stmoe list routers`.
PLURALS = {'model': 'models', 'router': 'routers', 'layer': 'layers', 'experts': 'experts',
           'virtual': 'virtual', 'executor': 'executors', 'attention': 'attention', 'head': 'heads',
           'target': 'targets', 'source': 'sources', 'objective': 'objectives', 'metric': 'metrics',
           'strategy': 'strategies', 'family': 'families', 'surgery': 'surgeries',
           'factorisation': 'factorisations', 'adaptation': 'adaptations', 'adapter': 'adapters',
           'mixer': 'mixers', 'network': 'networks', 'law': 'laws', 'launcher': 'launchers',
           'writer': 'writers', 'peer': 'peers', 'piece': 'pieces', 'figure': 'figures',
           'around': 'around', 'tasks': 'tasks', 'rotary_scaling': 'rotary_scaling', 'packing': 'packings',
           'positions': 'positions', 'optimizer': 'optimizers', 'schedule': 'schedules'}
# Kinds that are told by names at the top of a file, and by the arguments of the functions among them.
AT_TOP: dict[str, dict[str, list[str] | None]] = {
    'tasks': dict(TASKS=None),
    'executor': dict(execute=['x', 'a', 'experts', 'key']),
    'surgery': dict(operate=['params', 'config', 'calibration']),
    'factorisation': dict(factorise=['params', 'config', 'calibration']),
    'adaptation': dict(adapt=['config']),
    'metric': dict(score=['examples', 'predictions']),
    'family': dict(ARCHITECTURE=None, configure=['hf', 'tied'], describe=['c']),
    'packing': dict(unpacked=['tensors', 'section']),
    'positions': dict(configure=['hf', 'given'], describe=['scaling', 'logits']),
    'peer': dict(variant=['problem', 'floor'], missing=[]),
    'piece': dict(jobs=['dry']),
    'law': dict(COEFFICIENTS=None, predict=['coefficients', 'table']),
    'launcher': dict(launch=['runs', 'board']),
    'figure': dict(CAPTIONS=None, draw=['run']),
}
# Kinds of classes -> methods that tell them, and what an object is called with, None = whatever.
OF_CLASS: dict[str, tuple[set[str], list[str] | None]] = {
    'target': ({'loss', 'judge', 'metrics'}, None),
    'source': ({'shapes', 'open', 'lengths'}, None),
    'writer': ({'write', 'finish', 'close'}, None),
    'model': ({'stacks', 'count_tokens'}, None),
    'adapter': ({'attach'}, None),
    'objective': ({'example'}, None),
    'experts': (set(), ['rows']),
    'strategy': (set(), ['model', 'batch', 'length', 'key']),
    'network': (set(), ['x', 'graph', 'ctx']),
    'mixer': (set(), ['x', 'ctx']),
    'rotary_scaling': (set(), ['rate', 'base', 'length']),
    'virtual': (set(), ['x']),
}
SUB_LAYER = ['x', 'ctx', 'carry']    # what layers, attention, heads and routers are called with
# Classes of the project that tell the kind of what extends them; else the folder of such a class tells it.
BASES = {'stmoe.parts.block.Around': 'around', 'stmoe.parts.graph.Network': 'network'}
# Functions called like their file, by their first arguments.
OF_FUNCTION = {'optimizer': ['names', 'shapes'], 'schedule': ['step']}
SAID = 'PLUGIN'                      # at the top of a file: the kind of its class, where nothing else tells
WANTED = ('wanted: a class called like the file, such as a router (x, ctx, carry) -> Routed, or TASKS = {...}'
          ', or a function such as execute, score or operate; CONTRIBUTING.md has all kinds')
OR_SAID = "; where the text leaves open what a class is, a line says it: PLUGIN = 'head'"
SEQIO = "seqio's registry is not read: docs/from_t5x.md writes its tasks as JSON lines"


def told(path: pathlib.Path, tree: ast.Module) -> tuple[str, ...]:
  """Returns what the file `path` of syntax tree `tree` holds, keys of KINDS; raises UserError for nothing."""
  values = {target.id: node.value for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))
            for target in getattr(node, 'targets', [getattr(node, 'target', None)])
            if isinstance(target, ast.Name)}
  functions = {node.name: _arguments(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
  kinds = [kind for kind, names in AT_TOP.items()
           if all(name in functions and functions[name][:len(wanted)] == wanted if wanted is not None else
                  name in values for name, wanted in names.items())]
  kinds += [kind for kind, wanted in OF_FUNCTION.items()
            if functions.get(path.stem, [])[:len(wanted)] == wanted]
  said = values.get(SAID)
  kind = _kind_of_class(path, tree, said)
  if said and kind in {*AT_TOP, *OF_FUNCTION} - {*kinds}:
    raise errors.UserError(f'{path}, line {said.lineno}: {SAID}={kind!r} is no kind of classes; '
                           f'wanted: {_form(kind, path)}')
  kinds += [kind] if kind and kind not in kinds else []
  if not kinds:
    raise errors.UserError(f'{path} {_nothing(path, tree, functions)}; {WANTED}')
  return tuple(kinds)


def imported(tree: ast.Module) -> tuple[str, ...]:
  """Returns the modules in packages of KINDS that a file of syntax tree `tree` imports, 'PACKAGE.NAME'."""
  names = [name for node in ast.walk(tree) for name in
           ([f'{node.module}.{alias.name}' for alias in node.names] if isinstance(node, ast.ImportFrom) else
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else ())]
  return tuple(dict.fromkeys(name for name in names if name.rpartition('.')[0] in KINDS.values()))


def _arguments(function):
  """The names of the arguments of a function that are no fields."""
  return [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]


def _form(kind, path):
  """What a file of a kind without a class has at its top, in words."""
  names = AT_TOP[kind] if kind in AT_TOP else {path.stem: OF_FUNCTION[kind]}
  return ' and '.join(f'{name} = ...' if wanted is None else f'{name}({", ".join([*wanted, "..."])})'
                      for name, wanted in names.items())


def _nothing(path, tree, functions):
  """Why a file is told to hold nothing."""
  for kind, names in AT_TOP.items():
    for name, wanted in names.items():
      if name in functions and wanted and functions[name][:len(wanted)] != wanted:
        return f'has {name}({", ".join(functions[name])}); wanted of the kind {kind}: {_form(kind, path)}'
  classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
  if _called_like(path, tree):
    return f'does not tell what {_called_like(path, tree).name} is{OR_SAID}'
  called = ''.join(word.title() for word in path.stem.split('_'))
  rename = f'; nearest: call {classes[0]} {called}, or the file after the class' if len(classes) == 1 else ''
  registry = any(getattr(node, 'attr', '') == 'TaskRegistry' for node in ast.walk(tree))
  return (f'holds nothing that is called like it{rename}{f"; {SEQIO}" if registry else ""} '
          f'(classes: {", ".join(classes) or "none"})')


def _called_like(path, tree):
  """The class of a file that is called like the file, or None."""
  plain = path.stem.replace('_', '').lower()
  return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.lower() == plain),
              None)


def _kind_of_class(path, tree, said):
  """The kind of the class called like the file: as PLUGIN says, or by what it extends, has and takes."""
  if said is not None:
    kind = getattr(said, 'value', None)
    if kind not in KINDS:
      raise errors.UserError(f'{path}, line {said.lineno}: {SAID}={ast.unparse(said)}'
                             f'{errors.nearest(kind, KINDS)} (there are: {", ".join(KINDS)})')
    return kind
  found = _called_like(path, tree)
  return found and (_extended(tree, found) or _by_methods(found))


def _extended(tree, found):
  """The kind of a class that extends one of the project's, told by where that is imported from, or None."""
  imports = {alias.asname or alias.name: f'{node.module}.{alias.name}' for node in tree.body
             if isinstance(node, ast.ImportFrom) for alias in node.names}
  bases = []
  for base in found.bases:
    head, dot, rest = ast.unparse(base).partition('.')
    bases.append(imports.get(head, head) + dot + rest)
  said = (BASES.get(base) for base in bases)
  homes = (kind for kind, package in PACKAGES.items() for base in bases if base.startswith(f'{package}.'))
  return next((kind for kind in (*said, *homes) if kind), None)


def _by_methods(found):
  """The kind of a class by its methods and by what it is called with, or None."""
  methods = {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}
  call = methods.get('__call__')
  arguments = _arguments(call)[1:] if call else []
  for kind, (names, called_with) in OF_CLASS.items():
    if names <= set(methods) and (called_with is None or arguments[:1] == called_with == ['rows']
                                  or arguments == called_with):
      return kind
  return _sub_layer(found, call) if arguments == SUB_LAYER else None


def _sub_layer(found, call):
  """The kind of a class of what is called with (x, ctx, carry)."""
  told = ast.unparse(call.returns) if call.returns else ''
  if told.endswith('Answer'):
    words = {ast.unparse(node) for node in ast.walk(found) if isinstance(node, ast.Attribute)}
    return 'attention' if 'ctx.visible' in words else 'layer'
  words = {getattr(node, 'attr', getattr(node, 'id', None)) for node in ast.walk(found)}
  return 'router' if told.endswith('Routed') or 'Routed' in words else 'layer'
