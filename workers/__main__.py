"""``python -m workers``: a worker."""

from autotune.cli.main import run_command

if __name__ == "__main__":
    run_command("worker")
