"""What both sides do once their program is there; needs nothing of stmoe, nor of transformers."""

import json
import sys
import time


def serve(run, **facts):
  """Says what the first run() returned, and the facts; then runs as often as told, see `turns.Worker`."""
  print(json.dumps(dict(first=run(), **facts)), flush=True)
  for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(int(line)):
      run()
    print(json.dumps(dict(s=(time.perf_counter() - began) / int(line))), flush=True)
