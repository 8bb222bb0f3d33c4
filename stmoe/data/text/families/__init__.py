"""Families of tasks, one file each: `TASKS` is a dict name -> function of the user's files -> tasks.Task."""
