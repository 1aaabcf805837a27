"""Distributed hyperparameter search for deep models in biology and medicine."""
