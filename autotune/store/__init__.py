"""The trial store: campaigns, trials, reports, workers and leaders on MongoDB."""
