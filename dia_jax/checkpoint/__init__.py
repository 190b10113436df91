"""Weights on disk: what a directory or file holds, reading it into parameters, and writing them again.

    open_checkpoint   what is there, in which layout, without reading a weight
    load_params       a checkpoint onto the device
    save_params       parameters into a new directory
    convert           one layout into another, or into another dtype

Dia comes in the reference's layout (safetensors, or .pth and .bin, which need torch), in that of transformers (one file
or sharded) and as our Orbax directory; DAC in descript's `weights.pth`, in that of `dac_44khz`, and as our Orbax
directory. The layout is detected from the tensors' names, never from the file's. Beside this walk, `tensors` knows the
file formats that are read, `names` the names and shapes of each layout, `schemas` the configs, `writing` the files that
are written, and `adapters` low-rank changes. None of them knows the hub.

Reading and converting stream: one tensor at a time is read, checked and turned into our shape. Everything wrong with a
checkpoint is collected into one message. Writing goes to a temporary name beside the target, which is renamed in the
end.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from dia_jax.checkpoint.adapters import Adapter, open_adapter
from dia_jax.checkpoint.names import (
    DERIVED,
    Kind,
    StoredLayout,
    count_problems,
    detect,
    fold_weight_norm,
    make_rules,
    split_fused_qkv,
)
from dia_jax.checkpoint.schemas import dac_from_json, dac_to_json, dia_from_json, dia_to_json
from dia_jax.checkpoint.tensors import (
    ALIGNMENT,
    DTYPES,
    CheckpointError,
    StoredTensor,
    aligned_empty,
    list_tensors,
)
from dia_jax.checkpoint.writing import Layout, check_layout, new_directory, write_arrays
from dia_jax.config import ConfigError, DacConfig, DiaConfig, Variant, one_line, short
from dia_jax.dac import Dac
from dia_jax.files import read_json
from dia_jax.model import DiaModel, Quantize, quantize_kernel

__all__ = [
    "DTYPES",
    "Adapter",
    "Checkpoint",
    "CheckpointError",
    "Layout",
    "StoredTensor",
    "abstract_params",
    "codec_beside",
    "convert",
    "dac_from_json",
    "dac_to_json",
    "dia_from_json",
    "dia_to_json",
    "load_params",
    "new_directory",
    "open_adapter",
    "open_checkpoint",
    "save_params",
    "write_params",
]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is on disk, known without reading a weight.

    Attributes:
        path: what was opened.
        kind: "dia" or "dac".
        layout: "orbax", "transformers", "reference" or "descript".
        config: sizes and behaviour.
        tensors: by the layout's own names, fused and weight-normed ones already taken apart.
        problems: what is wrong with the files themselves (a missing or truncated shard).
    """

    path: Path
    kind: Kind
    layout: StoredLayout
    config: DiaConfig | DacConfig
    tensors: dict[str, StoredTensor]
    problems: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The dtype of all matrices, or float32 where they are mixed: the one to load in without loss."""
        dtypes = {tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) > 1} - {self.quantize}
        return dtypes.pop() if len(dtypes) == 1 and dtypes <= DTYPES.keys() else "float32"

    @property
    def quantize(self) -> Quantize | None:
        """How the kernels are rounded: "int8", which only our own layout stores, or not at all."""
        is_int8 = self.layout == "orbax" and any(tensor.dtype == "int8" for tensor in self.tensors.values())
        return "int8" if self.kind == "dia" and is_int8 else None

    def digest(self) -> str:
        """Distinguishes these weights from others in the same layout.

        It covers all names, shapes and dtypes, and the values of all vectors and of the smallest matrix.
        """
        whole = hashlib.sha256()
        matrices = [(tensor.nbytes, name) for name, tensor in self.tensors.items() if len(tensor.shape) > 1]
        smallest = min(matrices, default=(0, ""))[1]
        for name, tensor in sorted(self.tensors.items()):
            whole.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
            if len(tensor.shape) == 1 or name == smallest:
                whole.update(tensor.read().tobytes())
        return whole.hexdigest()[:16]


def codec_beside(path: Path) -> Path | None:
    """The folder `dac/` in a checkpoint's directory, which is its codec, if it has one."""
    own = (path if path.is_dir() else path.parent) / "dac"
    return own if own.is_dir() else None


def open_checkpoint(path: str | os.PathLike, *, variant: Variant | None = None) -> Checkpoint:
    """Finds out what a directory or file holds, reading names and shapes only.

    Args:
        path: a directory (with `config.json`), or one weights file (with `config.json` beside it; descript's
            `weights.pth` brings its own).
        variant: overrides the behaviour that Dia's config implies.

    Raises:
        CheckpointError: nothing readable is there, it is neither Dia nor DAC, or its config belongs to other weights.
        ConfigError: the config is missing or unusable.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise CheckpointError(f"There is no checkpoint at {path}: no such file or directory.")
        contents = list_tensors(path)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from None
    # torch.compile leaves a prefix.
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in contents.tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(DERIVED)}
    kind, layout = detect(path, tensors)
    if kind == "dac":
        tensors = fold_weight_norm(tensors)

    kwargs = contents.metadata.get("kwargs") if isinstance(contents.metadata, dict) else None
    config: DiaConfig | DacConfig
    if kind == "dac" and isinstance(kwargs, dict):
        config = dac_from_json(kwargs)
    else:
        folder = path if path.is_dir() else path.parent
        if contents.is_orbax and not (folder / "config.json").exists():
            folder = folder.parent
        if not (folder / "config.json").exists():
            raise ConfigError(f"There is no config.json in {folder}; put the checkpoint's own beside its weights.")
        data = read_json(folder / "config.json")
        config = dia_from_json(data, variant=variant) if kind == "dia" else dac_from_json(data)
    # Before anything is built from the config. A missing shard takes its layers along, and loading lists them.
    if not contents.problems and (wrong := count_problems(config, tensors)):
        raise CheckpointError(
            f"{path} cannot be loaded: {'; '.join(wrong)}; take the config that belongs to these weights."
        )
    if isinstance(config, DiaConfig):
        tensors = split_fused_qkv(tensors, config)
    return Checkpoint(path, kind, "orbax" if contents.is_orbax else layout, config, tensors, contents.problems)


# --- Loading ---------------------------------------------------------------------------------------------------------


def abstract_params(
    config: DiaConfig | DacConfig, dtype: str = "float32", quantize: Quantize | None = None
) -> tuple[nnx.GraphDef, nnx.State]:
    """The module's structure and its parameters as shapes and dtypes, without any bytes."""
    if isinstance(config, DiaConfig):

        def make() -> DiaModel:
            model = DiaModel(config, dtype=DTYPES[dtype], rngs=nnx.Rngs(0))
            if quantize is not None:
                model.quantize()
            return model

        return nnx.split(nnx.eval_shape(make))
    return nnx.split(nnx.eval_shape(lambda: Dac(config, rngs=nnx.Rngs(0))))


def _by_path(state: nnx.State) -> dict[str, Any]:
    return {".".join(map(str, path)): value for path, value in nnx.to_flat_state(state)}


def load_params(
    checkpoint: Checkpoint,
    *,
    dtype: str | None = None,
    quantize: Quantize | None = None,
    adapter: str | os.PathLike | None = None,
    sharding: Callable[[tuple], jax.sharding.Sharding] | None = None,
    progress: bool = False,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Reads a checkpoint onto devices, tensor by tensor.

    Args:
        checkpoint: from `open_checkpoint`.
        dtype: of Dia's kernels and embeddings ("float32", "bfloat16", "float16"); None keeps the stored one. Norms and
            the codec are float32 whatever it is.
        quantize: "int8" rounds Dia's kernels as they are read. A checkpoint that is stored so is loaded so.
        adapter: the directory of an adapter that is merged into the kernels as they are read.
        sharding: gives for each parameter's path the devices and their parts; None is the default device.
        progress: show a progress bar.

    Returns:
        graphdef and state; `nnx.merge(graphdef, state)` is the module.

    Raises:
        CheckpointError: lists every missing, unknown, misshapen, unreadable and non-finite tensor.
    """
    graphdef, abstract = abstract_params(checkpoint.config, dtype or checkpoint.dtype, quantize or checkpoint.quantize)
    wanted = _by_path(abstract)
    if adapter is not None and checkpoint.quantize:
        raise CheckpointError(f"{checkpoint.path} is stored in int8, which no adapter fits; take one that is not.")
    changes = None if adapter is None else open_adapter(adapter, wanted)
    loaded = {}
    for path, array in _read_params(checkpoint, wanted, adapter=changes, progress=progress):
        loaded[path] = jax.device_put(array, None if sharding is None else sharding(tuple(path.split("."))))
        del array  # or the next tensor would be read while this one is still held here
    flat = [(path, value.replace(loaded[".".join(map(str, path))])) for path, value in nnx.to_flat_state(abstract)]
    return graphdef, nnx.from_flat_state(flat)


def _read_params(
    checkpoint: Checkpoint, wanted: Mapping[str, Any], *, adapter: Adapter | None = None, progress: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields our parameters one by one, in our shapes and dtypes; raises at the end of a bad checkpoint."""
    scales = {path.removesuffix("weight") + "scale" for path, value in wanted.items() if value.dtype == jnp.int8}
    rounds = checkpoint.quantize is None and bool(scales)
    stored = {path: value.shape for path, value in wanted.items() if not (rounds and path in scales)}
    rules = make_rules(checkpoint.config, checkpoint.layout, stored)
    tensors, problems = checkpoint.tensors, list(checkpoint.problems)
    expected = {name: rule.shape for rule in rules.values() for name in rule.names}
    problems += [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    problems += [
        f"unknown: {name if name.isprintable() else short(name)} {tensor.shape}"
        for name, tensor in tensors.items()
        if name not in expected
    ]
    problems += [
        f"misshapen: {name} is {tensors[name].shape}, not {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]

    total = sum(tensor.nbytes for tensor in tensors.values())
    with tqdm(
        total=total, unit="B", unit_scale=True, desc=f"reading {checkpoint.path.name}", disable=not progress
    ) as bar:
        for path, rule in rules.items():
            arrays = []
            for name in rule.names:
                if name not in tensors or tensors[name].shape != rule.shape:
                    continue
                array, problem = _read_tensor(name, tensors[name], {*DTYPES, checkpoint.quantize})
                bar.update(tensors[name].nbytes)
                problems += problem
                arrays.append(array)
                del array
            if problems:
                continue  # go on reading, to report all there is, but keep nothing
            dtype = wanted[path].dtype
            array = rule.load(arrays)
            del arrays
            if adapter is not None:
                array = adapter.merge(path, array)
                if not np.isfinite(array).all():
                    problems.append(f"not finite after the adapter is merged: {path}")
                    continue
            if rounds and dtype == jnp.int8:
                kernel, scale = quantize_kernel(array)
                del array
                yield path.removesuffix("weight") + "scale", scale  # in the order in which they would be read
                yield path, kernel
                del kernel
                continue
            if array.dtype != dtype or not array.flags.c_contiguous or array.ctypes.data % ALIGNMENT:
                copy = aligned_empty(array.shape, dtype)
                with np.errstate(over="ignore"):  # looked for below
                    np.copyto(copy, array, casting="unsafe")
                array = copy
                del copy
            if dtype == jnp.float16 and not np.isfinite(array).all():
                problems.append(f"too large for float16: {path}")
                continue
            yield path, array
            del array
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} is not a usable {checkpoint.kind} checkpoint ({checkpoint.layout} layout); "
            f"{len(problems)} thing{'s are' if len(problems) > 1 else ' is'} wrong with it: "
            + "; ".join(problems)
            + "."
        )


def _read_tensor(name: str, tensor: StoredTensor, dtypes: Collection) -> tuple[np.ndarray, list[str]]:
    empty = np.zeros(0, np.float32)
    if tensor.dtype not in dtypes:
        return empty, [f"of no usable type: {name} is {tensor.dtype}, not one of {', '.join(DTYPES)}"]
    try:
        array = tensor.read()
    except CheckpointError as error:
        return empty, [f"unreadable: {name} ({error})"]
    except Exception as error:  # whatever a damaged file makes of the libraries that read it
        return empty, [f"unreadable: {name} ({one_line(error)})"]
    if not np.isfinite(array).all():
        return empty, [f"not finite: {name} holds NaN or infinity"]
    return array, []


# --- Writing ---------------------------------------------------------------------------------------------------------


def save_params(
    target: str | os.PathLike, config: DiaConfig | DacConfig, params: nnx.State, *, layout: Layout = "orbax"
) -> None:
    """Writes a checkpoint into a new directory, all or nothing.

    Args:
        target: a directory that does not exist yet, or is empty.
        config: of the model.
        params: its parameters.
        layout: "orbax"; "transformers" (sharded above 2 GB), which `transformers` loads; for Dia also "reference"
            (safetensors) and "reference-pth"; for DAC also "descript" (`weights.pth`). The last of each need torch.

    Raises:
        CheckpointError: the layout is not one of this model's, or the directory cannot be written.
    """
    check_layout(config, layout, _by_path(params), Path(target).absolute())
    with new_directory(target) as folder:
        write_params(folder, config, params, layout=layout)


def write_params(folder: Path, config: DiaConfig | DacConfig, params: nnx.State, *, layout: Layout) -> None:
    """Writes a checkpoint's files into an existing, empty folder; see `save_params`."""
    values = _by_path(params)
    arrays = ((path, np.asarray(value[...])) for path, value in values.items())
    write_arrays(folder, config, arrays, values, layout=layout)


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    layout: Layout = "orbax",
    variant: Variant | None = None,
    dtype: str | None = None,
    quantize: Quantize | None = None,
    verify: bool = False,
    progress: bool = False,
) -> Checkpoint:
    """Reads a checkpoint in any layout and writes it in another, Dia or DAC.

    Args:
        source: directory or file, see `open_checkpoint`.
        target: a new directory.
        layout: what to write, see `save_params`.
        variant: overrides the behaviour that Dia's config implies.
        dtype: converts Dia's kernels; None keeps them as they are, to the bit.
        quantize: "int8" rounds Dia's kernels; only for the orbax layout.
        verify: read back what was written and compare every tensor with the source, before `target` appears.
        progress: show progress bars.

    Returns:
        what was read.

    Raises:
        CheckpointError: the source is unusable, the target cannot be written, or a tensor differs. Nothing is written.
    """
    checkpoint = open_checkpoint(source, variant=variant)
    wanted = _by_path(abstract_params(checkpoint.config, dtype or checkpoint.dtype, quantize or checkpoint.quantize)[1])
    check_layout(checkpoint.config, layout, wanted, Path(target).absolute())
    with new_directory(target) as folder:
        arrays = _read_params(checkpoint, wanted, progress=progress)
        write_arrays(folder, checkpoint.config, arrays, wanted, layout=layout)
        if verify:
            written = open_checkpoint(folder)
            if written.config != checkpoint.config:
                raise CheckpointError(
                    f"What was written has another config: {written.config}, not {checkpoint.config}."
                )
            pairs = zip(
                _read_params(checkpoint, wanted, progress=False),
                _read_params(written, wanted, progress=progress),
                strict=True,
            )
            different = [path for (path, before), (_, after) in pairs if before.tobytes() != after.tobytes()]
            if different:
                raise CheckpointError(f"These tensors differ from the source after writing: {', '.join(different)}.")
    return checkpoint
