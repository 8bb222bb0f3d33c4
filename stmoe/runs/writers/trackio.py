"""Trackio, Hugging Face's local dashboard: `trackio show` draws what is in its folder, TRACKIO_DIR."""

import os
import pathlib

PACKAGE = 'trackio'
OWN = dict(time='seconds')                # names that Trackio has a use of its own for


class Trackio:
  """Writes with trackio. A continued run continues the curves of the run with the same name.

  The project is TRACKIO_PROJECT (default 'stmoe'). Trackio writes in the background, steps in order and each
  whole. What its store has when the run continues counts; later steps are sent. So it is with a Space or a
  server, which no test here has: one that does not answer then counts as empty, and gets all steps again.
  """

  def __init__(self, path: pathlib.Path, step: int, *, id: str, holds: int, name: str, config: dict) -> None:
    import trackio
    from trackio import fragments
    self.id = id or f'{name}-{os.urandom(3).hex()}'
    if id:
      fragments.import_inbox_dir()                 # on a network's file system lines wait in files for import
    self._run = trackio.init(project=os.environ.get('TRACKIO_PROJECT', 'stmoe'), name=self.id,
                             resume='allow', config={key: str(value) for key, value in config.items()},
                             embed=False)
    self.holds = self._run._next_step - 1          # what `resume` found in the store, or at the server

  def write(self, step: int, values: dict, loads: dict) -> None:
    """Logs a line with the share of every expert of every layer; `time` is called `seconds`."""
    values = {OWN.get(name, name): value for name, value in values.items()}
    self._run.log(values | {f'load/{layer}/{expert}': float(share) for layer, shares in loads.items()
                            for expert, share in enumerate(shares)}, step=step)

  def finish(self, final: dict) -> None:
    """Nothing: the dashboard shows the last value of every curve."""

  def close(self) -> None:
    """Waits until all is written."""
    self._run.finish()
