"""A simulated worker pool and clock that runs schedules over learning curves, through the code that runs live."""
