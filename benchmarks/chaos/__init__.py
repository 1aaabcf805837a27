"""Chaos: campaigns of the real service, whose processes are killed, frozen and cut off while trials run.

python -m benchmarks.chaos [SCENARIO ...] [--short] [--seed N]
"""
