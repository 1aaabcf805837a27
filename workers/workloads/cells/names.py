"""Names of very many cells in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

_AT_ONCE = 1 << 16


class Names(Sequence[str]):
    """Names that are kept as one run of UTF-8, in memory or mapped from a file: no Python object per cell.

    Objects would cost 60 bytes and more each, and once again in each process that looks at them: Python counts
    references in the objects themselves, which copies the page that they lie on.

    Args:
        text: All names, one after another, uint8.
        ends: Where each name ends in `text`, shape ``(number of names,)``.
    """

    def __init__(self, text: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Return these names packed."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        first = 0
        for start in range(0, len(self.ends), _AT_ONCE):
            ends = self.ends[start : start + _AT_ONCE].tolist()
            offset, run = first, self.text[first : ends[-1]].tobytes()
            for end in ends:
                yield run[first - offset : end - offset].decode("utf-8", "surrogateescape")
                first = end

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        first = int(self.ends[position - 1]) if position else 0
        return self.text[first : int(self.ends[position])].tobytes().decode("utf-8", "surrogateescape")

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Names):
            return np.array_equal(self.ends, other.ends) and np.array_equal(self.text, other.text)
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]
