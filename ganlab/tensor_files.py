"""Reads files of tensors that may be a stranger's: no code runs, and memory stays within the file.

torch and safetensors check much themselves. What they let pass is refused here: compressed or
overlapping parts of a zip file, tensors that claim more numbers than the file holds, tensors that
are no plain ones, structures without end, and numbers that are not finite.
"""

import hashlib
import json
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ganlab.errors import printable
from ganlab.files import sha256

MOST_HEADER = 8 * 2**20  # bytes of names and shapes in a .safetensors file
MOST_ARRAYS = 2**30  # bytes of the arrays in a .npz file
MOST_PARTS = 300_000
MOST_DEPTH = 50
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_BLOCK = 2**24  # numbers that are looked at together


class OddFile(ValueError):  # noqa: N818  # it names a thing
    """The file is not what it should be."""

    def __init__(self, fault: str) -> None:
        """:param fault: one line, without the file's name; it may have a stranger's words."""
        super().__init__(printable(fault.partition("\n")[0]))


def read_pickle(file: Path) -> Any:
    """What `torch.save` wrote into a .pt or .pth file, with tensors on the CPU.

    :raises OddFile: when it cannot be read, or holds code.
    """
    _require_file(file)
    with file.open("rb") as opened:
        begins = opened.read(4)
    if begins == _ZIP:
        _check_zip(file)
    elif not begins.startswith(_PICKLE):
        raise OddFile("torch.save did not write it")
    try:
        with warnings.catch_warnings(action="ignore"):  # about old formats
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of all kinds, since any byte may be wrong
        reason = str(error).partition("\n")[0]
        if "weights_only" in reason:  # torch advises to switch the safety off
            reason = "it holds code, or objects that are no weights"
        raise OddFile(reason or type(error).__name__) from None


def read_arrays(file: Path) -> dict[str, Tensor]:
    """The arrays in a .npz file as tensors.

    :raises OddFile: when it cannot be read, holds objects, or unpacks to more than 1 GiB.
    """
    _require_file(file)
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_ARRAYS:
            raise OddFile(f"it unpacks to {size:,} bytes; at most {MOST_ARRAYS:,} are allowed")
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except OddFile:
        raise
    except (Exception, MemoryError) as error:
        raise OddFile(str(error) or type(error).__name__) from None


def read_safetensors(file: Path, sealed: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a .safetensors file, compared with its digest if it has one.

    :param sealed: whether it must have one, as each has that ganlab writes.
    :raises OddFile: when it cannot be read, or is not as it was written.
    """
    shapes_in(file)
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except Exception as error:
        raise OddFile(str(error)) from None
    _check_seal(tensors, metadata, sealed)
    return tensors, metadata


def seal(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, str]:
    """Metadata for a file of weights: what is known of them, and a digest of both.

    It is one key: safetensors writes several in any order, and equal weights shall give equal
    bytes.
    """
    return {"ganlab": json.dumps({**about, "sha256": _seal(tensors, about)})}


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of the names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _seal(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    return sha256(f"{tensors_sha256(tensors)} {json.dumps(about)}")


def _check_seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], required: bool) -> None:
    about = about_in(metadata)
    known = about.pop("sha256", None)
    if known is None and required:
        raise OddFile("its digest is missing")
    if known is not None and known != _seal(tensors, about):
        raise OddFile("it is not as it was written (its sha256 differs)")


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a .safetensors file; no tensor is read.

    :raises OddFile: when it cannot be read, or two tensors have one name.
    """
    _require_file(file)
    with file.open("rb") as opened:
        begins = opened.read(8)
        size = struct.unpack("<Q", begins)[0] if len(begins) == 8 else 0
        if not 0 < size <= MOST_HEADER:
            raise OddFile("its header is too large, or there is none")
        header = opened.read(size)
    try:
        json.loads(header, object_pairs_hook=_without_doubles)
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            return {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except OddFile:
        raise
    except Exception as error:
        raise OddFile(str(error)) from None


def metadata_in(file: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; no tensor is read.

    :raises OddFile: when it cannot be read.
    """
    shapes_in(file)
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise OddFile("two of its entries have one name")
    return found


def about_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What ganlab noted in the metadata of a file of weights; empty where it noted nothing."""
    try:
        about = json.loads(metadata.get("ganlab", "{}"))
    except (ValueError, RecursionError):
        about = {}
    return about if isinstance(about, dict) else {}


def iteration_in(metadata: Mapping[str, str]) -> int:
    """The iteration that ganlab noted in the metadata of a file of weights.

    :raises OddFile: when it says none.
    """
    iteration = about_in(metadata).get("iteration")
    if type(iteration) is int and 0 <= iteration < 2**63:
        return iteration
    raise OddFile("it does not say its iteration")


def check_weights(tensors: Mapping[str, Any]) -> None:
    """Refuse what can be no weights of a network.

    :raises OddFile: naming the first tensor that is no plain one, or holds a number that is not
        finite.
    """
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise OddFile("it holds something other than the weights of one network")
        if fault := fault_of(value):
            raise OddFile(f"its tensor {name} {fault}")
        if value.is_complex():
            raise OddFile(f"its tensor {name} holds complex numbers")
        if not is_finite(value):
            raise OddFile(f"its tensor {name} holds a number that is not finite")


def check_parts(value: Any) -> None:
    """Refuse nested dicts and lists that never end, or hold tensors that are no plain ones.

    :raises OddFile: naming the first part that is odd.
    """
    for number, (place, part) in enumerate(_parts(value, "")):
        if number > MOST_PARTS:
            raise OddFile(f"it has more than {MOST_PARTS:,} parts")
        if isinstance(part, Tensor) and (fault := fault_of(part)):
            raise OddFile(f"its tensor {place} {fault}")


def _parts(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > MOST_DEPTH:
        raise OddFile("its parts are nested too deeply")
    yield place, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _parts(inner, f"{place}.{key}" if place else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _parts(inner, f"{place}.{number}", depth + 1)


def fault_of(value: Tensor) -> str:
    """Why a tensor is no plain one on the CPU; "" when it is."""
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        return "is sparse, quantized or nested"
    if value.device.type != "cpu":
        return f"is on the device {value.device.type}, without numbers"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"claims {value.numel():,} numbers, more than the file holds"
    return ""


def is_finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; it is looked at in blocks."""
    if not (value.is_floating_point() or value.is_complex()):
        return True
    flat = value.detach().reshape(-1)
    if value.element_size() == 1:  # for 8 bits torch has no test
        flat = flat.float()
    return all(bool(torch.isfinite(block).all()) for block in flat.split(_BLOCK))


def _require_file(file: Path) -> None:
    if not file.is_file():
        raise OddFile("it is not a file")


def _check_zip(file: Path) -> None:
    """Refuse a zip file whose parts are compressed, as torch's never are, or overlap."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except Exception as error:  # damaged in any way
        raise OddFile(f"not a whole zip file: {error}") from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise OddFile("its parts are compressed; torch.save compresses none")
    if sum(member.file_size for member in members) > file.stat().st_size:
        raise OddFile("its parts claim more bytes than the file has")
