"""What sources of data, objectives and tasks of texts must do."""
