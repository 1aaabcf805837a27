"""Objectives for tests: small functions that end in every way a training can end."""
