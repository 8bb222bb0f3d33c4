"""Trackio, Hugging Face's local dashboard: `trackio show` draws what is in its folder, TRACKIO_DIR."""

import os
import pathlib

PACKAGE = 'trackio'


class Trackio:
  """Writes with trackio. A continued run continues the curves of the run with the same name.

  The project is TRACKIO_PROJECT (default 'stmoe').
  """

  def __init__(self, path: pathlib.Path, step: int, *, id: str, holds: int, name: str, config: dict) -> None:
    import trackio
    self.holds = holds
    self.id = id or f'{name}-{os.urandom(3).hex()}'
    self._run = trackio.init(project=os.environ.get('TRACKIO_PROJECT', 'stmoe'), name=self.id,
                             resume='allow', config={key: str(value) for key, value in config.items()},
                             embed=False)

  def write(self, step: int, values: dict) -> None:
    """Logs a line."""
    self._run.log(values, step=step)

  def loads(self, step: int, load: dict) -> None:
    """Logs the share of every expert of every layer."""
    self._run.log({f'load/{layer}/{expert}': float(share) for layer, shares in load.items()
                   for expert, share in enumerate(shares)}, step=step)

  def finish(self, final: dict) -> None:
    """Nothing: the dashboard shows the last value of every curve."""

  def close(self) -> None:
    """Waits until all is written."""
    self._run.finish()
