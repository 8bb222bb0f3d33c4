"""Everything worth measuring on a machine with one GPU, by one command, in order of worth, within a budget.

  python -m stmoe.bench.device --budget 480 --out DIR      measures what DIR does not have yet
  python -m stmoe.bench.device --list --out DIR            what that would be, and how long it may take
  python -m stmoe.bench.device --tables DIR                writes DIR/README.md of what DIR has
  python -m stmoe.bench.device --dry --out DIR             tiny shapes on a CPU: does it work?
  python -m stmoe.bench.device.carry --have LIST --out DIR what a machine without a network must be given

`pieces` has a file for every kind of work. `worker` is the process that holds the GPU: its threads compile,
and stand still while something is timed. `kit` starts the worker, keeps the budget and saves every record as
soon as it is there. docs/accelerator.md explains the use.
"""
