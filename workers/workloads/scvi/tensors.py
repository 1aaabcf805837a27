"""Tensors in a file of the safetensors format: a header in JSON, then their bytes. Nothing is pickled.

Written out here because the format is small, and its library does not come with scvi-tools. Any safetensors library
reads the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}
_LONGEST_HEADER = 100_000_000


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors, from whatever device, to a file.

    Raises:
        KeyError: If one has a type that is not known here.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as target:
        target.write(len(text).to_bytes(8, "little"))
        target.write(text)
        for tensor in tensors.values():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            target.write(flat.view(torch.uint8).numpy())


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, on the CPU.

    Raises:
        ValueError: If it is not such a file.
    """
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"{file.name} is no file of tensors")
        header = json.loads(source.read(length))
        data = bytearray(source.read())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, (begin, end) = _TYPES.get(entry["dtype"]), entry["data_offsets"]
        if dtype is None or not 0 <= begin <= end <= len(data):
            raise ValueError(f"{name} in {file.name} is not readable")
        tensor = torch.empty(entry["shape"], dtype=dtype)
        if tensor.numel() * tensor.element_size() != end - begin:
            raise ValueError(f"{name} in {file.name} has another size than its shape")
        if end > begin:
            flat = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=begin)
            tensor.reshape(-1).view(torch.uint8).copy_(flat)
        tensors[name] = tensor
    return tensors
