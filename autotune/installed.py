"""Which versions of the packages that matter this host has, without importing them."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("autotune", "numpy", "scipy", "anndata", "scikit-learn", "torch", "scvi-tools", "lightning", "transformers")


def versions() -> dict[str, str]:
    """Return package name -> version for those that are installed, and ``python``."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
