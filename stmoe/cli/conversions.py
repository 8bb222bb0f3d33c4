"""Lists and deletes what was converted of downloaded folders: runs in the cache that commands read instead.

stmoe conversions                         each with its size, its age, and the folder that it is of
stmoe conversions --delete old            those of folders that are gone or changed, or of another version
stmoe conversions --delete all
stmoe conversions --delete Tiny-1M        those of this name

A conversion that is needed again is made again. What commands wrote about the model is deleted with it. The
cache is $STMOE_CACHE_DIR or ~/.cache/stmoe.
"""

import time

from stmoe import errors

DAY = 24 * 60 * 60


def add_arguments(parser):
  parser.add_argument('--delete', metavar='WHICH', help='old, all, or the name of a model')


def run(args):
  from stmoe.derive import downloaded
  from stmoe.derive import shown
  from stmoe.derive.conversion import cached
  folder = downloaded.cache()
  there = cached.all_of(folder)
  meant = {'old': [one for one in there if one.old], 'all': there, None: there}.get(
      args.delete, [one for one in there if one.path.name == args.delete])
  if args.delete not in (None, 'old', 'all') and not meant:
    names = sorted({one.path.name for one in there})
    raise errors.UserError(f'--delete {args.delete}: no conversion has this name'
                           f'{errors.nearest(args.delete, names)} (there are: {", ".join(names) or "none"})')
  for one in meant:
    age = max(time.time() - one.made, 0) / DAY
    print(f'{one.path}  {shown.size(one.size)}, {age:.0f} days, of {one.source or "an unknown folder"}'
          f'{", old" if one.old else ""}')
  if args.delete is not None and meant:
    cached.delete(folder, meant)
  total = shown.size(sum(one.size for one in meant))
  print(f'{len(meant)} conversions{"" if args.delete is None else " deleted"}, {total}')
