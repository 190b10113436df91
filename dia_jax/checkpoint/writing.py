"""Writing checkpoints: safetensors, torch's zip files and our Orbax directories, all or nothing.

Knows the files of each layout. Takes parameters one at a time, in our names and shapes, and writes each as it comes; so
that memory holds one tensor, a group of them for Orbax, or the whole model for torch, whose format leaves no choice.
Knows nothing of where the parameters come from.
"""

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from orbax.checkpoint import v1 as ocp

from dia_jax.checkpoint.names import make_rules, unfold_weight_norm
from dia_jax.checkpoint.schemas import (
    dac_to_json,
    dac_to_kwargs,
    dia_to_generation_json,
    dia_to_json,
    dia_to_nested_json,
)
from dia_jax.checkpoint.tensors import (
    ORBAX_FOLDER,
    SAFETENSORS_NAMES,
    CheckpointError,
    check_orbax_path,
    quiet_orbax,
)
from dia_jax.config import DacConfig, DiaConfig, one_line
from dia_jax.files import new_folder, remove, remove_stale, temporary_name

Layout = Literal["orbax", "transformers", "reference", "reference-pth", "descript"]
"""What can be written: "reference" and "reference-pth" for Dia only, "descript" for DAC only."""

DIA_LAYOUTS = ("orbax", "transformers", "reference", "reference-pth")
DAC_LAYOUTS = ("orbax", "transformers", "descript")

MAX_SHARD_BYTES = 2_000_000_000
ORBAX_GROUP_BYTES = 64 * 2**20
"""Tensors are handed to Orbax together until they have this size. Each call costs tens of milliseconds, and Orbax holds
a group several times while it writes it."""


# --- Directories -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_directory(target: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name on success and vanishes on failure.

    Args:
        target: the directory to write.
        replace: whether an existing directory is replaced when the new one is whole.

    Raises:
        CheckpointError: `target` exists and is not an empty directory, is a symbolic link, or cannot be written.
    """
    target = Path(target).absolute()
    try:
        _check_target(target, replace=replace)
        with new_folder(target) as folder:
            yield folder
            old = folder.with_name(f"{folder.name}.old")
            if replace and os.path.lexists(target):
                os.replace(target, old)
            os.replace(folder, target)
            remove(old)
            remove_stale(target, suffix=".old")
    except OSError as error:
        raise CheckpointError(f"Cannot write {target}: {error.strerror or one_line(error)}.") from error


def _check_target(target: Path, *, replace: bool) -> None:
    """Finds out before any work whether a new folder could take the target's name."""
    if target.is_symlink() and not replace:
        raise CheckpointError(f"{target} is a symbolic link; name the directory itself: {os.path.realpath(target)}.")
    if target.exists() and not (target.is_dir() and (replace or not any(target.iterdir()))):
        raise CheckpointError(f"{target} exists already; name a new directory, or remove it first.")
    if not target.parent.is_dir():
        raise CheckpointError(f"Cannot write {target}: there is no directory {target.parent}.")
    if target.exists() and not replace:
        aside = temporary_name(target)
        try:
            os.rename(target, aside)
            os.rename(aside, target)
        except OSError as error:
            raise CheckpointError(
                f"{target} cannot be replaced ({error.strerror}); a mount point cannot, for one. Name a new directory "
                "inside it."
            ) from None


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def check_layout(config: DiaConfig | DacConfig, layout: Layout, wanted: Mapping[str, Any], target: Path) -> None:
    """Refuses a layout that cannot hold these parameters, or cannot be written to this path.

    Raises:
        CheckpointError: the layout is not one of this model's, has no int8, needs torch, or takes no such path.
    """
    name, layouts = ("Dia", DIA_LAYOUTS) if isinstance(config, DiaConfig) else ("DAC", DAC_LAYOUTS)
    if layout not in layouts:
        raise CheckpointError(f"Layout {layout!r} is not one of {name}'s: {', '.join(layouts)}.")
    if layout != "orbax" and any(value.dtype == np.int8 for value in wanted.values()):
        raise CheckpointError(f"Layout {layout!r} holds no int8 kernels; write the orbax layout.")
    if layout in ("reference-pth", "descript") and importlib.util.find_spec("torch") is None:
        raise CheckpointError(f"Writing the layout {layout!r} needs torch: pip install 'dia_jax[convert]'.")
    if layout == "orbax":
        check_orbax_path(target)


def write_arrays(
    folder: Path,
    config: DiaConfig | DacConfig,
    arrays: Iterable[tuple[str, np.ndarray]],
    wanted: Mapping[str, Any],
    *,
    layout: Layout,
) -> None:
    """Writes a checkpoint's files into an existing, empty folder.

    Args:
        folder: where the files go.
        config: of the model.
        arrays: our parameters with their paths, in the order of `wanted`.
        wanted: their shapes and dtypes by path.
        layout: what to write.

    Raises:
        CheckpointError: the layout is not one of this model's, or needs torch.
        OSError: the folder cannot be written.
    """
    check_layout(config, layout, wanted, folder)
    if layout == "orbax":
        _write_orbax(folder / ORBAX_FOLDER, arrays)
        _write_json(
            folder / "config.json", dia_to_json(config) if isinstance(config, DiaConfig) else dac_to_json(config)
        )
        return
    stored = "reference" if layout == "reference-pth" else layout
    rules = make_rules(config, stored, {path: value.shape for path, value in wanted.items()})

    def pieces() -> Iterator[tuple[str, np.ndarray]]:
        for path, array in arrays:
            parts = list(zip(rules[path].names, rules[path].store(array), strict=True))
            del array  # or it would be held while the next one is read
            while parts:
                name, part = parts.pop(0)
                yield name, np.ascontiguousarray(part)
                del part

    if isinstance(config, DacConfig):
        if layout == "descript":
            weights = unfold_weight_norm(dict(pieces()))
            _write_torch(folder / "weights.pth", weights, metadata={"kwargs": dac_to_kwargs(config)})
            return
        data, torch_name = dac_to_json(config), ""
    elif layout == "transformers":
        dtype = np.dtype(wanted["decoder.logits_dense.weight"].dtype).name
        data, torch_name = dia_to_json(config) | {"torch_dtype": dtype}, ""
    elif config.variant == "v0.1":
        data, torch_name = dia_to_nested_json(config), "dia-v0_1.pth"
    else:
        data, torch_name = dia_to_json(config), "dia-v1.pth"
    if layout == "reference-pth":
        _write_torch(folder / torch_name, dict(pieces()))
    else:
        entries = {
            name: (rule.shape, np.dtype(wanted[path].dtype)) for path, rule in rules.items() for name in rule.names
        }
        _write_safetensors(
            folder, entries, pieces(), max_shard_bytes=MAX_SHARD_BYTES if layout == "transformers" else None
        )
    _write_json(folder / "config.json", data)
    if isinstance(config, DiaConfig) and layout == "transformers":
        _write_json(folder / "generation_config.json", dia_to_generation_json(config))


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _write_safetensors(
    folder: Path,
    entries: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    pieces: Iterator[tuple[str, np.ndarray]],
    *,
    max_shard_bytes: int | None,
) -> None:
    """`model.safetensors`, or shards with an index. The library's own writer wants all tensors in memory at once."""
    shards: list[list[str]] = [[]]
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, (shape, dtype) in entries.items()}
    size = 0
    for name in entries:
        if max_shard_bytes and size and size + sizes[name] > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += sizes[name]
    weight_map = {}
    for i, shard in enumerate(shards):
        file_name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in shard:
            shape, dtype = entries[name]
            header[name] = {
                "dtype": SAFETENSORS_NAMES[dtype.name],
                "shape": list(shape),
                "data_offsets": [offset, offset + sizes[name]],
            }
            offset += sizes[name]
            weight_map[name] = file_name
        data = json.dumps(header, separators=(",", ":")).encode()
        data += b" " * (-len(data) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(len(data).to_bytes(8, "little") + data)
            for _ in shard:
                array = next(pieces)[1]
                file.write(array.reshape(-1).view(np.uint8).data)
                del array
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_orbax(folder: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """A flat dictionary of arrays, saved in parts that Orbax joins in the end."""
    folder = folder.absolute()  # Orbax takes no other
    group: Any = {}

    def save() -> None:
        with _write_errors(folder), quiet_orbax():
            ocp.partial.save(str(folder), group)
        group.clear()

    for path, array in arrays:
        group[path] = array
        del array
        if sum(part.nbytes for part in group.values()) >= ORBAX_GROUP_BYTES:
            save()
    if group:
        save()
    with _write_errors(folder), quiet_orbax():
        ocp.partial.finalize(str(folder))


def _write_torch(path: Path, weights: Mapping[str, np.ndarray], metadata: Any = None) -> None:
    import torch

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    with warnings.catch_warnings(), _write_errors(path.parent):
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        tensors = {name: tensor(array) for name, array in weights.items()}
        torch.save({"state_dict": tensors, "metadata": metadata} if metadata else tensors, path)


@contextlib.contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Turns what Orbax and torch raise when a write fails into the OSError that it is."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        is_full = "No space left" in str(error) or shutil.disk_usage(there).free < 2**20
        code = errno.ENOSPC if is_full else errno.EIO
        raise OSError(code, os.strerror(code) if is_full else one_line(error)) from error
