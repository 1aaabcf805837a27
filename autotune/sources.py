"""Where the source of an objective lies, and the hash of it, without importing or running anything.

The hash is taken over names and bytes: the same files in another folder or on another host have the same hash, and a
file with other line ends has another one.
"""

from __future__ import annotations

import hashlib
import keyword
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import find_spec
from pathlib import Path

MAX_FILES = 2_000
MAX_BYTES = 50 * 2**20

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_NAME = 300
_LOADERS = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


def split_objective(objective: str) -> tuple[str, str] | None:
    """Return (module, callable) of ``module:callable``; None if it is not of that form.

    Both parts are dotted names of plain ASCII letters, digits and ``_``; no part of the module is ``__main__`` or the
    like, and no part of the callable reaches into Python's internals.
    """
    module, separator, attribute = objective.partition(":")
    if not separator or len(objective) > _MAX_NAME or not is_module_name(module) or not is_module_name(attribute):
        return None
    return module, attribute


def is_module_name(name: str) -> bool:
    """Return whether `name` is a dotted name that an objective may have."""
    return all(
        _NAME.fullmatch(part) and not keyword.iskeyword(part) and not part.startswith("__") for part in name.split(".")
    )


def source_hash(objective: str, paths: Sequence[str] = ()) -> str | None:
    """Return the SHA-256 of the source of ``module:callable``.

    Of a module that is one file that file counts; of a module in a package all ``*.py`` files of the topmost package.

    Args:
        objective: The objective.
        paths: Folders to look in before those of `sys.path`.

    Returns:
        None when it cannot be found as source, or has more than `MAX_FILES` files or `MAX_BYTES` bytes.
    """
    names = split_objective(objective)
    if names is None:
        return None
    file = find_module(names[0], [*paths, *sys.path]) or find_module(names[0], None)
    if file is None:
        return None
    top = _top_folder(file, names[0])
    return files_hash([file], file.parent) if top is None else folder_hash(top)


def find_module(name: str, folders: Iterable[str] | None) -> Path | None:
    """Return the source file of a module, as an import that looks in `folders` would find it; nothing is imported.

    Args:
        name: Dotted name.
        folders: Folders in order, ``""`` for the working directory; None: as this process would import it.

    Returns:
        Its ``.py`` file, of a package its ``__init__.py``; None if there is none, or it is not source.
    """
    if not is_module_name(name):
        return None
    first, *rest = name.split(".")
    spec = _imported_spec(first) if folders is None else _spec(first, folders)
    full = first
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        full = f"{full}.{part}"
        spec = _spec(full, spec.submodule_search_locations)
    if spec is None or not isinstance(spec.loader, SourceFileLoader) or spec.origin is None:
        return None
    return Path(spec.origin).absolute()


def _imported_spec(name: str) -> ModuleSpec | None:
    """Return what this process imports, or has imported, as a top-level name."""
    try:
        return find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _spec(name: str, folders: Iterable[str]) -> ModuleSpec | None:
    """Return what the first of the folders that has `name` has; a namespace package if some have parts of one."""
    portions: list[str] = []
    for folder in folders:
        try:
            spec = FileFinder(os.path.abspath(folder), *_LOADERS).find_spec(name)
        except (OSError, ValueError):
            continue
        if spec is not None and spec.loader is not None:
            return spec
        if spec is not None:
            portions += spec.submodule_search_locations or ()
    if not portions:
        return None
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace


def _top_folder(file: Path, name: str) -> Path | None:
    """Return the folder of the topmost package that holds a module's file; None for a file outside any package."""
    depth = name.count(".") + (file.name == "__init__.py")
    return file.parents[depth - 1] if depth else None


def folder_hash(folder: Path) -> str | None:
    """Return the SHA-256 of all ``*.py`` files below a folder; hidden ones and caches do not count.

    Returns:
        None when one cannot be read, or there are more than `MAX_FILES` files or `MAX_BYTES` bytes.
    """
    files = []
    try:
        for file in _sources(folder):
            files.append(file)
            if len(files) > MAX_FILES:
                return None
    except OSError:
        return None
    return files_hash(files, folder)


def _sources(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        yield from (Path(place, name) for name in names if name.endswith(".py") and not name.startswith("."))


def files_hash(files: Iterable[Path], base: Path) -> str | None:
    """Return the SHA-256 over names relative to `base` and contents; None if one cannot be read or all are too big."""
    digest = hashlib.sha256()
    size = 0
    for name, file in sorted((os.fsencode(file.relative_to(base).as_posix()), file) for file in files):
        try:
            size += file.stat().st_size
            if size > MAX_BYTES:
                return None
            content = file.read_bytes()
        except OSError:
            return None
        for part in (name, content):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
