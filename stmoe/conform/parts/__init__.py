"""What mixers of tasks, networks over graphs and scalings of rotary positions must do."""
