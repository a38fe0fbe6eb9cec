"""Odd files of tensors, as a stranger might make them: their names, and functions to write them."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Code:
    """An object that makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rezipped(
    data: bytes, change: Callable[[str, bytes], bytes] = lambda name, part: part,
    how: int = zipfile.ZIP_STORED,
) -> bytes:  # fmt: skip
    """The same zip file with changed parts, or compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", how) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def safetensors(header: object, body: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def _shared(depth: int) -> Any:
    """Lists that are small in the file, and have 2**depth parts."""
    value: Any = 0
    for _ in range(depth):
        value = [value, value]
    return value


def _cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return {"a": value}


def _shorter(name: str, part: bytes) -> bytes:
    return part[:8] if "/data/" in name else part


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("../../escaped")
        archive.addfile(member, io.BytesIO())
    return buffer.getvalue()


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def pickles(trace: Path) -> dict[str, bytes]:
    """Files of torch.save and the like, by what is odd in them."""
    weights = {"a": torch.zeros(1000)}
    return {
        "empty": b"",
        "text": b"hello",
        "code": saved({"a": Code(trace)}),
        "bare code": pickle.dumps(Code(trace)),
        "old code": pickle.dumps(Code(trace), protocol=0),
        "truncated": saved(weights)[:2000],
        "another zip": rezipped(saved(weights), lambda name, part: b""),
        "bomb": rezipped(saved({"a": torch.zeros(2**22)}), how=zipfile.ZIP_DEFLATED),
        "short part": rezipped(saved(weights), _shorter),
        "tar": _tar(),
        "cyclic": saved(_cyclic()),
        "deep": saved({"a": _nested(60)}),
        "shared": saved({"a": _shared(40)}),
        "alias": saved({"a": torch.zeros(1).expand(10**12)}),
        "meta": saved({"a": torch.zeros(10**9, device="meta")}),
        "sparse": saved({"a": torch.eye(4).to_sparse()}),
        "compressed rows": saved({"a": torch.eye(4).to_sparse_coo()}),
        "complex": saved({"a": torch.ones(4, dtype=torch.complex64)}),
        "number as a name": saved({1: torch.zeros(4)}),
        "list": saved([1, 2]),
        "nothing": saved(None),
        "storage": saved({"a": torch.zeros(4).untyped_storage()}),
        "great number": saved({"iteration": 10**2000}),
        "nan": saved({"a": torch.tensor([1, float("nan")])}),
        "infinity in 16 bits": saved({"a": torch.tensor([1, float("inf")]).half()}),
        "old and truncated": saved(weights, _use_new_zipfile_serialization=False)[:-100],
    }


def safetensors_files() -> dict[str, bytes]:
    """Files of safetensors, by what is odd in them."""
    nan = struct.pack("<2f", 1, float("nan"))
    return {
        "empty": b"",
        "no header": bytes(8),
        "length": safetensors({"a": F32}, length=2**60),
        "long header": safetensors({"__metadata__": {"a": "x" * 2**23}, "a": F32}),
        "deep": safetensors(b"[" * 100_000),
        "overlap": safetensors({"a": F32, "b": F32}),
        "double": safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2)),
        "list as metadata": safetensors({"__metadata__": [1], "a": F32}),
        "number as metadata": safetensors({"__metadata__": {"ganlab": 3}, "a": F32}),
        "truncated": safetensors({"a": F32}, bytes(4)),
        "hole": safetensors({"a": {**F32, "data_offsets": [8, 16]}}, bytes(16)),
        "negative": safetensors({"a": {**F32, "shape": [-2]}}),
        "huge": safetensors({"a": {**F32, "shape": [2**40, 2**40]}}),
        "unknown kind": safetensors({"a": {**F32, "dtype": "X"}}),
        "complex": safetensors({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}),
        "nan": safetensors({"a": F32}, nan),
        "escape": safetensors({"a\x1b[31m": F32}, nan),
    }


def arrays(trace: Path) -> dict[str, bytes]:
    """Files of numpy's arrays, by what is odd in them."""

    def packed(how: int, **parts: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", how) as archive:
            for name, part in parts.items():
                archive.writestr(f"{name}.npy", part)
        return buffer.getvalue()

    def array(value: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, value, **options)
        return buffer.getvalue()

    huge = array(np.zeros(8)).replace(b"'shape': (8,)", b"'shape': (10000000000000,)"[:13])
    return {
        "empty": b"",
        "code": packed(0, a=array(np.array([Code(trace)]), allow_pickle=True)),
        "text": packed(0, a=array(np.array(["x"]))),
        "no array": packed(0, a=b"hello"),
        "truncated": packed(0, a=array(np.zeros(8))[:-9]),
        "shape": packed(0, a=huge),
        "nan": packed(0, a=array(np.array([np.nan]))),
    }
