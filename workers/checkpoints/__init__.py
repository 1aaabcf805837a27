"""Checkpoints of trainings on a worker's host: written whole or not at all, by the training; carried by the agent."""
