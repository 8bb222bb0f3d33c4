"""MLflow: the tracking server, or the store, that MLFLOW_TRACKING_URI names.

The extra installs mlflow-skinny, which reaches servers, and folders such as file:///tmp/mlruns with
MLFLOW_ALLOW_FILE_STORE=true. A store such as sqlite:////tmp/mlflow.db, MLflow's default, wants the whole
package mlflow (not tried).
"""

import os
import pathlib
import time

PACKAGE = 'mlflow'
AT_ONCE = 100                            # parameters that MLflow takes in a request
MOST = 1000                              # metrics that MLflow takes in a request
LONGEST = 6000                           # characters of a parameter that MLflow keeps


class Mlflow:
  """Writes with mlflow's client. A continued run continues the MLflow run with the same id.

  The experiment is MLFLOW_EXPERIMENT_NAME (default 'stmoe'). A line is there when `write` returns. MLflow
  knows the last step of every metric: of a line that a kill has cut, the missing metrics alone are sent. A
  kill while the MLflow run is created may leave an empty one beside it.
  """

  def __init__(self, path: pathlib.Path, step: int, *, id: str, holds: int, name: str, config: dict) -> None:
    import mlflow
    self.id, self.holds, self._path, self._mlflow = id, holds, path, mlflow
    self._client, self._last = mlflow.MlflowClient(), {}             # metric -> its last step
    if id:
      found = self._client.get_run(id).data.to_proto()
      self._last = {metric.key: metric.step for metric in found.metrics}
    if not id:
      self.id = self._client.create_run(self._experiment(), run_name=name).info.run_id
      fields = [mlflow.entities.Param(field, str(value)[:LONGEST]) for field, value in config.items()]
      for first in range(0, len(fields), AT_ONCE):
        self._client.log_batch(self.id, params=fields[first:first + AT_ONCE])

  def _experiment(self):
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'stmoe')
    found = self._client.get_experiment_by_name(name)
    return found.experiment_id if found else self._client.create_experiment(name)

  def write(self, step: int, values: dict, loads: dict) -> None:
    """Logs a line; `finish` sends the files of the loads."""
    now = int(time.time() * 1000)
    metrics = [self._mlflow.entities.Metric(name, float(value), now, step)
               for name, value in values.items() if self._last.get(name, -1) < step]
    for first in range(0, len(metrics), MOST):
      self._client.log_batch(self.id, metrics=metrics[first:first + MOST], synchronous=True)

  def finish(self, final: dict) -> None:
    """Sends the loads of the experts as the artifacts router_stats, and ends the MLflow run."""
    if (self._path / 'router_stats').is_dir():
      self._client.log_artifacts(self.id, str(self._path / 'router_stats'), 'router_stats')
    self._client.set_terminated(self.id)

  def close(self) -> None:
    """Nothing is open."""
