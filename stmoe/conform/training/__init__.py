"""What optimizers, their schedules and targets must do: what training asks for beside a model."""
