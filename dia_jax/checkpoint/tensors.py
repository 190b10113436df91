"""Tensors on disk: what each file format holds, and how one tensor is read from it.

Knows safetensors (one file or sharded), torch's zip files and our Orbax directories, and of Dia and DAC only that their
tensors are of `DTYPES`. Which parameter a tensor becomes is the business of `names`.

Reading is lazy and streams: a `StoredTensor` is a shape and a function, and nothing stays mapped. The files may come
from anywhere. Sizes are looked at before they are believed, and pickles are opened by torch with `weights_only` alone,
after a scan has found nothing in them but tensors and plain values.
"""

import contextlib
import dataclasses
import logging
import math
import os
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from orbax.checkpoint import v1 as ocp
from safetensors import SafetensorError, safe_open

from dia_jax.config import ConfigError, DiaError, one_line, short
from dia_jax.files import parse_json, read_json

ORBAX_FOLDER = "params"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
ALIGNMENT = 64  # of the arrays, in bytes, that JAX's CPU backend takes over without a copy

MAX_PICKLE_BYTES = 16 * 2**20
"""Of the pickle in a torch file, which holds names and shapes; Dia's has 60 kB."""

MAX_ORBAX_METADATA_BYTES = 64 * 2**20

# fmt: off
PICKLE_OPCODES = frozenset([
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "BINPERSID", "GLOBAL",
    "REDUCE", "BUILD",
])
# fmt: on
"""What `torch.save` writes for a dictionary of tensors and plain values."""

PICKLE_GLOBALS = frozenset(
    ["collections OrderedDict", "torch Size", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"]
    + [
        f"torch {kind}Storage"
        for kind in ("Float", "Half", "BFloat16", "Double", "Byte", "Char", "Short", "Int", "Long")
    ]
    + [f"torch {kind}" for kind in ("float32", "float16", "bfloat16", "float64", "uint8", "int8", "int32", "int64")]
    + ["torch BoolStorage", "torch bool"]
)


class CheckpointError(DiaError):
    """A checkpoint that cannot be read or written; the message lists everything that is wrong with it."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk.

    Attributes:
        shape: as it is stored.
        dtype: the name of its dtype.
        read: gives a fresh numpy array of it, and keeps nothing mapped.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (jnp.dtype(self.dtype).itemsize if self.dtype in DTYPES else 1)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What files hold, known without reading a weight.

    Attributes:
        tensors: by the names in the files.
        metadata: the `metadata` of a torch file, which may be anything.
        problems: what is wrong with the files (a missing or truncated shard).
        is_orbax: whether it is an Orbax directory.
    """

    tensors: dict[str, StoredTensor]
    metadata: Any = None
    problems: tuple[str, ...] = ()
    is_orbax: bool = False


def list_tensors(path: Path) -> Contents:
    """Finds the weights in a directory, or in one file.

    Raises:
        CheckpointError: there are none, or they cannot be read.
        OSError: the directory or file cannot be read.
    """
    if path.is_file():
        return list_sharded(path) if path.name.endswith(".index.json") else list_file(path)
    for folder in (path / ORBAX_FOLDER, path):
        if (folder / "_CHECKPOINT_METADATA").exists():
            return Contents(list_orbax(folder), is_orbax=True)
    if (path / ORBAX_FOLDER).is_dir():
        raise CheckpointError(f"{path / ORBAX_FOLDER} is not a complete Orbax checkpoint: its metadata is missing.")
    if indices := sorted(path.glob("*.index.json")):
        return list_sharded(indices[0])
    for endings in ((".safetensors",), (".pth", ".bin", ".pt")):
        files = sorted(f for f in path.iterdir() if f.name.endswith(endings))
        if len(files) > 1:
            files = [f for f in files if f.name in ("model.safetensors", "pytorch_model.bin")] or files
        if len(files) > 1:
            names = ", ".join(f.name for f in files)
            raise CheckpointError(f"{path} holds several weights files and no index ({names}); name the one to load.")
        if files:
            return list_file(files[0])
    raise CheckpointError(
        f"There are no weights in {path}: no {ORBAX_FOLDER}/ (Orbax), *.index.json, *.safetensors, *.pth or *.bin."
    )


def list_sharded(index: Path) -> Contents:
    """The tensors of all shards that an index names."""
    try:
        weight_map = read_json(index)["weight_map"]
        shards = sorted({os.fspath(shard) for shard in weight_map.values()})
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a usable index of shards: {one_line(error)}.") from None
    tensors, problems = {}, []
    for shard in shards:
        if Path(shard).name != shard:
            problems.append(f"the index names {short(shard)}, which is no file of its own folder")
            continue
        try:
            found = list_file(index.parent / shard).tensors
        except CheckpointError as error:
            problems.append(str(error).rstrip("."))
        else:
            tensors |= {name: tensor for name, tensor in found.items() if weight_map.get(name) == shard}
    if problems and not tensors:
        raise CheckpointError(f"{index.parent} cannot be loaded: {'; '.join(problems)}.")
    return Contents(tensors, problems=tuple(problems))


def list_file(path: Path) -> Contents:
    """The tensors of one file, whose format its first bytes show."""
    if not path.exists():
        raise CheckpointError(f"{path.name} is missing from {path.parent}.")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file.")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from None
    if head.startswith(b"PK"):  # a zip archive
        return list_torch(path)
    if head.startswith(b"\x80"):
        raise CheckpointError(
            f"{path} is a bare pickle, as torch wrote before 1.6; save it again with a newer version."
        )
    return Contents(list_safetensors(path))


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that JAX's CPU backend takes over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


# --- safetensors -----------------------------------------------------------------------------------------------------


def list_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    The library checks the file. The bytes are read here, straight to where they will stay: the library's own reading
    makes them twice, and touching memory for the first time is what loading spends most of its time on.
    """

    def read(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        array = aligned_empty(shape, DTYPES[dtype])
        with open(path, "rb") as file:
            file.seek(start + header[name]["data_offsets"][0])
            if file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:  # pyrefly: ignore[bad-argument-type]
                raise CheckpointError("the file ends before its last byte")
        return array

    names = {short_name: name for name, short_name in SAFETENSORS_NAMES.items()}
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            kinds = {
                name: (tuple(part.get_shape()), names.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header, start = parse_json(file.read(size)), 8 + size
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({one_line(error)}).") from None
    return {
        name: StoredTensor(shape, dtype, lambda name=name, shape=shape, dtype=dtype: read(name, shape, dtype))
        for name, (shape, dtype) in kinds.items()
    }


# --- torch -----------------------------------------------------------------------------------------------------------


def list_torch(path: Path) -> Contents:
    """The tensors of a file that `torch.save` wrote, which may lie under `state_dict` or `model`."""

    def state_dict(data: Any) -> Mapping[str, Any]:
        for key in ("state_dict", "model"):
            if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
                return data[key]
        if not isinstance(data, Mapping):
            raise CheckpointError(f"{path} holds a {type(data).__name__}, not a dictionary of tensors.")
        return data

    def read(name: str) -> np.ndarray:
        # Loaded again for each tensor, as with safetensors: the pages of a mapping count as memory.
        tensor = state_dict(_load_torch(path))[name].detach()
        if str(tensor.dtype) == "torch.bfloat16":
            import torch

            return np.array(tensor.contiguous().view(torch.uint16).numpy()).view(ml_dtypes.bfloat16)
        return np.array(tensor.numpy())

    _check_pickle(path)
    data = _load_torch(path)
    file_size = path.stat().st_size
    tensors, problems = {}, []
    for name, value in state_dict(data).items():
        if not hasattr(value, "untyped_storage"):
            continue
        if value.numel() * value.element_size() > min(file_size, value.untyped_storage().nbytes()):
            problems.append(f"larger than its bytes in {path.name}: {name}")  # few bytes may be expanded to any shape
            continue
        dtype = str(value.dtype).removeprefix("torch.")
        tensors[str(name)] = StoredTensor(tuple(value.shape), dtype, lambda name=name: read(name))
    return Contents(tensors, data.get("metadata") if isinstance(data, Mapping) else None, tuple(problems))


def _check_pickle(path: Path) -> None:
    """Refuses a torch file that holds more than tensors and plain values, before torch sees it.

    With `weights_only`, torch runs no foreign code. But it inflates members and calls functions such as `bytearray`
    with whatever sizes a file asks for.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise CheckpointError(
                    f"{path} holds compressed members, which torch.save does not write; save it again."
                )
            pickles = [member for member in members if member.filename.split("/")[-1] == "data.pkl"]
            if len(pickles) != 1:
                raise CheckpointError(f"{path} is not a PyTorch file: it holds {len(pickles)} members named data.pkl.")
            if pickles[0].file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{path} holds a pickle of {pickles[0].file_size:,} bytes; a checkpoint's has at most "
                    f"{MAX_PICKLE_BYTES:,}."
                )
            for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
                if opcode.name not in PICKLE_OPCODES or (opcode.name == "GLOBAL" and argument not in PICKLE_GLOBALS):
                    found = short(argument) if opcode.name == "GLOBAL" else f"the opcode {opcode.name}"
                    raise CheckpointError(
                        f"{path} holds Python objects other than tensors ({found}); it is not loaded, because "
                        "unpickling them could run any code."
                    )
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged file makes of the libraries that read it
        raise CheckpointError(f"{path} is truncated or not a PyTorch file ({one_line(error)}).") from None


def _load_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"Reading {path} needs torch, which dia_jax does not otherwise use: pip install 'dia_jax[convert]', or "
            "take the checkpoint's safetensors."
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # one flipped bit makes torch call its functions with any arguments
        raise CheckpointError(f"{path} is truncated or not a PyTorch file ({one_line(error)}).") from None


# --- Orbax -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keeps Orbax's log from printing warnings and tracebacks for what is raised as an exception anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_orbax_path(path: Path) -> None:
    """Refuses a path that Orbax cannot take.

    Raises:
        CheckpointError: the path is not UTF-8.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"Orbax takes only paths that are UTF-8, not {os.fspath(path)!a}; rename it.") from None


def list_orbax(folder: Path) -> dict[str, StoredTensor]:
    """The arrays of an Orbax checkpoint that is a flat dictionary, as dia_jax writes it."""
    folder = folder.absolute()  # Orbax takes no other
    check_orbax_path(folder)
    for file in folder.rglob("*"):
        if not (file.is_dir() or file.is_file()):
            raise CheckpointError(f"{folder} is a damaged Orbax checkpoint: {file.name} is not a regular file.")
        if file.name.endswith("METADATA") and file.stat().st_size > MAX_ORBAX_METADATA_BYTES:
            raise CheckpointError(
                f"{folder} is a damaged Orbax checkpoint: {file.name} has more than {MAX_ORBAX_METADATA_BYTES:,} bytes."
            )
    try:
        with quiet_orbax():
            metadata: Any = ocp.metadata(str(folder)).metadata
        if not isinstance(metadata, dict) or not all(
            isinstance(name, str) and hasattr(leaf, "shape") for name, leaf in metadata.items()
        ):
            raise ValueError("it is not the flat dictionary of arrays that dia_jax writes")
        sizes = {name: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for name, leaf in metadata.items()}
    except Exception as error:  # whatever a damaged file makes of the libraries that read it
        raise CheckpointError(f"{folder} is a damaged Orbax checkpoint: {one_line(error)}.") from None

    # A call of Orbax takes tens of milliseconds, whatever it reads. So small tensors are read several at a time, in the
    # order in which they will be asked for, and together no more than the largest one.
    order = sorted(metadata, key=lambda name: [part.zfill(8) for part in name.split(".")])
    held: dict[str, np.ndarray] = {}

    def load(names: list[str]) -> dict[str, np.ndarray]:
        # Numpy arrays as the abstract values make Orbax restore to host memory; broadcasting makes them without bytes.
        wanted: Any = dict.fromkeys(metadata, ocp.PLACEHOLDER)
        wanted |= {name: np.broadcast_to(np.zeros((), metadata[name].dtype), metadata[name].shape) for name in names}
        with quiet_orbax():
            loaded: Any = ocp.load(str(folder), wanted)
        return {name: loaded[name] for name in names}

    def read(name: str) -> np.ndarray:
        if name not in held:
            held.clear()
            following = order[order.index(name) :]
            room = np.cumsum([sizes[other] for other in following]) <= max(sizes.values())
            try:
                held.update(load(following[: int(room.sum())]))
            except Exception:  # one of them is damaged; each is read alone to find which
                held.update(load([name]))
        return held.pop(name)

    return {
        name: StoredTensor(tuple(leaf.shape), np.dtype(leaf.dtype).name, lambda name=name: read(name))
        for name, leaf in metadata.items()
    }
