"""The report of a compiled training step as text; its numbers come from `stmoe.aot.step`."""

from stmoe.analysis import table
from stmoe.hosts import hardware


def lines(found):
  """Returns the lines of a report (see `aot.examine`), the verdict last."""
  model, rows = found['model'], []
  rows.append(f'{found["name"]} on {found["topology"]}: {found["devices"]} devices'
              + (f' ({found["remark"]})' if found['remark'] else '') + f', mesh {found["mesh"]}')
  rows += ['', f'parameters        {table.engineering(model["total"])}  ({model["total"]:,})',
           f'active per token  {table.engineering(model["active"])}',
           f'FLOPs per token   {table.engineering(model["forward"])} forward, '
           f'{table.engineering(model["train"])} in training (active, without capacity and recomputation)']
  if 'step' in found:
    rows += _step(found)
  return [*rows, '', verdict(found)]


def _step(found):
  step, memory = found['step'], found['step']['memory']
  rows = ['', 'of one device, in one training step']
  rows.append('  matrix products   ' + table.engineering(step['product_flops']) + 'FLOP, loops counted as '
              'they run' + ('' if step['trip_counts_known'] else ' (some of unknown length, counted once)'))
  if 'flops' in step['cost_analysis']:
    rows.append(f'  cost analysis     {table.engineering(step["cost_analysis"]["flops"])}FLOP, '
                'which counts the body of a loop once')
  rows.append(f'  memory traffic    {gib(step["traffic_bytes"])} (estimate)')
  capacity = f' of {gib(memory["capacity"])}' if memory['capacity'] else ''
  parts = ', '.join(f'{part} {gib(memory[part])}' for part in ('arguments', 'temporaries', 'code'))
  rows.append(f'  memory            {gib(memory["peak"])}{capacity}: {parts}; '
              f'updated in place {gib(memory["aliased"])}')
  kinds = step['collectives']
  if kinds:
    cells = [[kind, f'{row["count"]:,}', f'{row["executions"]:,}' + ('' if row['known'] else '+'),
              mib(row['bytes']), mib(row['wire_bytes'])] for kind, row in kinds.items()]
    head = ['collective', 'places', 'times', 'payload MiB', 'sent MiB']
    rows += ['', *table.plain(head, cells).splitlines()]
    rows += ['', 'largest: ' + ', '.join(f'{scope} {mib(size)} MiB' for scope, size in
                                         list(step['collectives_by_scope'].items())[:5])]
  else:
    rows += ['', 'no collectives']
  return rows + roofline(step['roofline'], found['chip'])


def roofline(times, chip):
  """Returns the lines of an estimate from `hardware.roofline`; none for a CPU."""
  if times['total'] is None:
    return []
  parts = ', '.join(f'{part} {times[part] * 1e3:,.2f} ms' for part in ('compute', 'memory', 'interconnect'))
  return ['', f'roofline estimate {times["total"] * 1e3:,.2f} ms per step, not less: {parts}',
          f'  (vendor figures, unmeasured: {chip["source"]})']


def verdict(found):
  """Returns 'fits (X GiB free)' or 'does not fit by X GiB, try ...'; a CPU only compiles."""
  free = found['free']
  if found['fits'] is None:
    return 'compiles (no capacity is known for virtual devices)'
  if found['fits']:
    return f'fits ({gib(free)} free)'
  by = f' by {gib(-free)}' if free is not None else ''
  settings = ['--config.' + text.replace(' ', ' --config.') for text in found['try']]
  return f'does not fit{by}, try {" or ".join(settings)}'


def gib(size):
  """Returns '1.50 GiB' of bytes."""
  return f'{size / hardware.GIB:,.2f} GiB'


def mib(size):
  """Returns '1.5' MiB of bytes."""
  return f'{size / 2**20:,.1f}'
