"""Running a campaign from this machine: resolve its file, start a coordinator and workers, follow it to its end."""
