"""Weights on disk: which layout a directory or file holds, how its names and shapes map to ours, reading and writing.

Dia comes in the reference's layout (safetensors, or .pth/.bin, which need torch), in that of transformers (one file or
sharded) and as our Orbax directory; DAC in descript's `weights.pth`, in that of `dac_44khz`, and as our Orbax
directory. The layout is told from the tensors' names, never from the file's. Knows the hub only as a directory that
somebody else has filled.

Reading streams: one tensor at a time is read, checked, turned into our shape and put on the device, so that host memory
holds at most the model and its largest tensor. Everything wrong with a checkpoint is collected and told at once.
Writing goes to a temporary name beside the target and is renamed when all is there. Pickles are opened with
`weights_only` alone.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from dia_jax.config import ConfigError, DacConfig, DiaConfig, DiaError, Variant, read_json
from dia_jax.dac import Dac
from dia_jax.model import DiaModel, Quantize, quantize_kernel

Layout = Literal["orbax", "transformers", "reference", "reference-pth", "descript"]
"""What can be written: "reference" and "reference-pth" for Dia only, "descript" for DAC only."""

ORBAX_FOLDER = "params"
MAX_SHARD_BYTES = 2_000_000_000
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
ALIGNMENT = 64  # of the arrays, in bytes, that JAX's CPU backend takes over without a copy


class CheckpointError(DiaError):
    """A checkpoint that cannot be read or written; the message lists all that is wrong with it."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk: its shape, its dtype's name and how to read it (a fresh numpy array, nothing kept mapped)."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (jnp.dtype(self.dtype).itemsize if self.dtype in DTYPES else 1)


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
    kind: Literal["dia", "dac"]
    layout: Literal["orbax", "transformers", "reference", "descript"]
    config: DiaConfig | DacConfig
    tensors: dict[str, StoredTensor]
    problems: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The dtype of all matrices, or float32 where they are mixed: the one to load in, to lose nothing."""
        dtypes = {tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) > 1} - {self.quantize}
        return dtypes.pop() if len(dtypes) == 1 and dtypes <= DTYPES.keys() else "float32"

    @property
    def quantize(self) -> Quantize | None:
        """ "int8" if the kernels are stored so, which only our own layout does."""
        return "int8" if self.layout == "orbax" and any(t.dtype == "int8" for t in self.tensors.values()) else None

    def digest(self) -> str:
        """Tells these weights from others in the same layout: by names, shapes, all vectors and the smallest matrix."""
        whole = hashlib.sha256()
        smallest = min((t.nbytes, name) for name, t in self.tensors.items() if len(t.shape) > 1)[1]
        for name, tensor in sorted(self.tensors.items()):
            whole.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
            if len(tensor.shape) == 1 or name == smallest:
                whole.update(tensor.read().tobytes())
        return whole.hexdigest()[:16]


# --- Reading files ---------------------------------------------------------------------------------------------------


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
        CheckpointError: nothing readable is there, or it is neither Dia nor DAC.
        ConfigError: the config is missing or unusable.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise CheckpointError(f"There is no checkpoint at {path}: no such file or directory.")
        tensors, metadata, problems, is_orbax = _list_tensors(path)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from None
    # torch.compile leaves a prefix; RoPE's frequencies are recomputed.
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    tensors = {n: t for n, t in tensors.items() if not n.endswith((".timescale", ".inv_freq", ".original_inv_freq"))}
    kind, layout = _detect(path, tensors)
    if kind == "dac":
        tensors = _fold_weight_norm(tensors)

    kwargs = metadata.get("kwargs") if isinstance(metadata, dict) else None
    if kind == "dac" and isinstance(kwargs, dict):
        config: DiaConfig | DacConfig = DacConfig.from_json(kwargs)
    else:
        folder = path if path.is_dir() else path.parent
        if is_orbax and not (folder / "config.json").exists():
            folder = folder.parent
        if not (folder / "config.json").exists():
            raise ConfigError(f"There is no config.json in {folder}; put the checkpoint's own beside its weights.")
        data = read_json(folder / "config.json")
        config = DiaConfig.from_json(data, variant=variant) if kind == "dia" else DacConfig.from_json(data)
    if isinstance(config, DiaConfig):
        tensors = _split_fused_qkv(tensors, config)
    return Checkpoint(path, kind, "orbax" if is_orbax else layout, config, tensors, tuple(problems))


def _list_tensors(path: Path) -> tuple[dict[str, StoredTensor], Any, list[str], bool]:
    """Tensors, torch metadata, problems, and whether it is Orbax's."""
    if path.is_file():
        if path.name.endswith(".index.json"):
            tensors, problems = _list_sharded(path)
            return tensors, None, problems, False
        tensors, metadata = _list_file(path)
        return tensors, metadata, [], False
    for folder in (path / ORBAX_FOLDER, path):
        if (folder / "_CHECKPOINT_METADATA").exists():
            return _list_orbax(folder), None, [], True
    if (path / ORBAX_FOLDER).is_dir():
        raise CheckpointError(f"{path / ORBAX_FOLDER} is not a complete Orbax checkpoint: its metadata is missing.")
    indices = sorted(path.glob("*.index.json"))
    if indices:
        tensors, problems = _list_sharded(indices[0])
        return tensors, None, problems, False
    for endings in ((".safetensors",), (".pth", ".bin", ".pt")):
        files = sorted(f for f in path.iterdir() if f.name.endswith(endings))
        if len(files) > 1:
            files = [f for f in files if f.name in ("model.safetensors", "pytorch_model.bin")] or files
        if len(files) > 1:
            names = ", ".join(f.name for f in files)
            raise CheckpointError(f"{path} holds several weights files and no index ({names}); name the one to load.")
        if files:
            tensors, metadata = _list_file(files[0])
            return tensors, metadata, [], False
    raise CheckpointError(
        f"There are no weights in {path}: no {ORBAX_FOLDER}/ (Orbax), *.index.json, *.safetensors, *.pth or *.bin."
    )


def _list_sharded(index: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    try:
        weight_map: dict[str, str] = read_json(index)["weight_map"]
        shards = sorted({os.fspath(shard) for shard in weight_map.values()})
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a usable index of shards: {error}.") from None
    tensors, problems = {}, []
    for shard in shards:
        if Path(shard).name != shard:
            problems.append(f"the index names {shard!r}, which is no file of its own folder")
            continue
        try:
            found, _ = _list_file(index.parent / shard)
        except CheckpointError as error:
            problems.append(str(error).rstrip("."))
        else:
            tensors |= {name: t for name, t in found.items() if weight_map.get(name) == shard}
    if problems and not tensors:
        raise CheckpointError(f"{index.parent} cannot be loaded: {'; '.join(problems)}.")
    return tensors, problems


def _list_file(path: Path) -> tuple[dict[str, StoredTensor], Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing from {path.parent}.")
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith(b"PK"):  # a zip archive
        return _list_torch(path)
    if head.startswith(b"\x80"):
        raise CheckpointError(f"{path} is a bare pickle, as torch wrote before 1.6; save it anew with a newer one.")
    return _list_safetensors(path), None


def _list_safetensors(path: Path) -> dict[str, StoredTensor]:
    # The library checks the file; the bytes are read here, straight to where they will stay. Its own reading makes them
    # twice, and memory that is touched for the first time is what loading spends most of its time on.
    def read(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        array = _aligned_empty(shape, DTYPES[dtype])
        with open(path, "rb") as file:
            file.seek(start + header[name]["data_offsets"][0])
            if file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:  # pyrefly: ignore[bad-argument-type]
                raise CheckpointError("the file ends before its last byte")
        return array

    names = {short: long for long, short in SAFETENSORS_NAMES.items()}
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            kinds = {
                name: (tuple(part.get_shape()), names.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header, start = json.loads(file.read(size)), 8 + size
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({error}).") from None
    return {
        name: StoredTensor(shape, dtype, lambda name=name, shape=shape, dtype=dtype: read(name, shape, dtype))
        for name, (shape, dtype) in kinds.items()
    }


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _load_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"Reading {path} needs torch, which dia_jax does not otherwise use: pip install 'dia_jax[convert]', or "
            "take the checkpoint's safetensors."
        ) from None
    errors = (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, AttributeError, IndexError, OSError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds Python objects other than tensors, or is corrupt; it is not loaded, because unpickling them "
            "could run any code."
        ) from None
    except errors as error:
        raise CheckpointError(f"{path} is truncated or not a PyTorch file ({_first_line(error)}).") from None


def _list_torch(path: Path) -> tuple[dict[str, StoredTensor], Any]:
    def state_dict(data: Any) -> Mapping[str, Any]:
        for key in ("state_dict", "model"):
            if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
                return data[key]
        if not isinstance(data, Mapping):
            raise CheckpointError(f"{path} holds a {type(data).__name__}, not a dictionary of tensors.")
        return data

    def read(name: str) -> np.ndarray:
        # Loaded anew for each tensor, as with safetensors: the pages of a mapping count as memory.
        tensor = state_dict(_load_torch(path))[name].detach()
        if str(tensor.dtype) == "torch.bfloat16":
            import torch

            return np.array(tensor.contiguous().view(torch.uint16).numpy()).view(ml_dtypes.bfloat16)
        return np.array(tensor.numpy())

    data = _load_torch(path)
    tensors = {
        str(name): StoredTensor(
            tuple(value.shape), str(value.dtype).removeprefix("torch."), lambda name=name: read(name)
        )
        for name, value in state_dict(data).items()
        if hasattr(value, "shape")
    }
    return tensors, data.get("metadata") if isinstance(data, Mapping) else None


def _list_orbax(folder: Path) -> dict[str, StoredTensor]:
    folder = folder.absolute()  # Orbax takes no other
    logger = logging.getLogger("absl")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # what Orbax warns of here is told below
        metadata: Any = ocp.metadata(str(folder)).metadata
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is a damaged Orbax checkpoint: {_first_line(error)}.") from None
    finally:
        logger.setLevel(level)
    if not isinstance(metadata, dict) or not all(hasattr(leaf, "shape") for leaf in metadata.values()):
        raise CheckpointError(
            f"{folder} is a damaged Orbax checkpoint, or not the flat dictionary of arrays that dia_jax writes."
        )

    # A call of Orbax takes tens of milliseconds, whatever it reads; so small tensors are read several at a time, in the
    # order in which they will be asked for, and together no more than the largest one.
    order = sorted(metadata, key=lambda name: [part.zfill(8) for part in name.split(".")])
    sizes = {name: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for name, leaf in metadata.items()}
    held: dict[str, np.ndarray] = {}

    def load(names: list[str]) -> dict[str, np.ndarray]:
        # Numpy arrays as the abstract values make Orbax restore to host memory; broadcasting makes them without bytes.
        wanted: Any = dict.fromkeys(metadata, ocp.PLACEHOLDER)
        wanted |= {name: np.broadcast_to(np.zeros((), metadata[name].dtype), metadata[name].shape) for name in names}
        loaded: Any = ocp.load(str(folder), wanted)
        return {name: loaded[name] for name in names}

    def read(name: str) -> np.ndarray:
        if name not in held:
            held.clear()
            following = order[order.index(name) :]
            room = np.cumsum([sizes[other] for other in following]) <= max(sizes.values())
            try:
                held.update(load(following[: int(room.sum())]))
            except Exception:  # one of them is damaged; which one, this one's own reading tells
                held.update(load([name]))
        return held.pop(name)

    return {
        name: StoredTensor(tuple(leaf.shape), np.dtype(leaf.dtype).name, lambda name=name: read(name))
        for name, leaf in metadata.items()
    }


def _detect(path: Path, names: Mapping[str, Any]) -> tuple[Any, Any]:
    signs = (
        ("model.encoder.", "dia", "transformers"),
        ("model.decoder.", "dia", "transformers"),
        ("encoder.layers.", "dia", "reference"),
        ("decoder.layers.", "dia", "reference"),
        ("decoder.model.", "dac", "descript"),
        ("encoder.conv1.", "dac", "transformers"),
        ("decoder.conv1.", "dac", "transformers"),
    )
    for prefix, kind, layout in signs:
        if any(name.startswith(prefix) for name in names):
            return kind, layout
    some = ", ".join(sorted(names)[:5]) or "none"
    raise CheckpointError(f"{path} holds neither Dia nor DAC weights; its first tensors are: {some}.")


def _fold_weight_norm(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Turns g and v of weight norm (Salimans & Kingma, 2016) into w = g v / ||v||, the norm over all axes but 0."""
    spellings = (
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        (".weight_g", ".weight_v"),
    )
    folded = dict(tensors)
    for g_name, v_name in spellings:
        for name in [n for n in tensors if n.endswith(g_name) and n.removesuffix(g_name) + v_name in tensors]:
            base = name.removesuffix(g_name)
            g, v = tensors[name], tensors[base + v_name]
            if g.shape != (v.shape[0], *[1] * (len(v.shape) - 1)) or {g.dtype, v.dtype} - DTYPES.keys():
                continue  # left as it is, to be reported as unknown
            del folded[name], folded[base + v_name]

            def read(g=g, v=v) -> np.ndarray:
                direction = v.read().astype(np.float32)
                norm = np.sqrt(np.sum(np.square(direction), axis=tuple(range(1, direction.ndim)), keepdims=True))
                return direction * (g.read().astype(np.float32) / np.where(norm == 0, 1, norm))

            folded[base + ".weight"] = StoredTensor(v.shape, "float32", read)
    return folded


def _split_fused_qkv(tensors: dict[str, StoredTensor], config: DiaConfig) -> dict[str, StoredTensor]:
    """Takes `self_attention.qkv.linear.weight` ((N + 2K) H, in) apart into the reference's three projections."""
    ending, split = ".qkv.linear.weight", dict(tensors)
    for name in [n for n in tensors if n.endswith(ending)]:
        fused, base = tensors[name], name.removesuffix(ending)
        sizes = config.encoder if name.startswith("encoder.") else config.decoder
        heads, head_dim = (sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads), sizes.head_dim
        if len(fused.shape) != 2 or fused.shape[0] != sum(heads) * head_dim:
            continue  # left as it is, to be reported as unknown
        del split[name]
        first = 0
        for part, count in zip(("q_proj", "k_proj", "v_proj"), heads, strict=True):
            shape = (fused.shape[1], count, head_dim)

            def read(fused=fused, first=first, shape=shape) -> np.ndarray:
                return np.ascontiguousarray(fused.read()[first : first + shape[1] * shape[2]].T).reshape(shape)

            split[f"{base}.{part}.weight"] = StoredTensor(shape, fused.dtype, read)
            first += count * head_dim
    return split


# --- Names and shapes ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one parameter of ours stands in a layout: as which tensors, and how to get from them to it and back."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    load: Callable[[list[np.ndarray]], np.ndarray]
    store: Callable[[np.ndarray], list[np.ndarray]]


def _rules(config: DiaConfig | DacConfig, layout: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Rule]:
    """One rule for each of our parameters' paths."""

    def rule(path: str, shape: tuple[int, ...]) -> Rule:
        if layout == "orbax":
            return _reshaping(path, shape, shape)
        for ours in (".scale", ".kernel", ".embedding"):  # flax's names for what PyTorch calls weight
            if path.endswith(ours):
                path = path.removesuffix(ours) + ".weight"
        if isinstance(config, DacConfig):
            return _dac_rule(path, shape, layout, config)
        return (_transformers_rule if layout == "transformers" else _reference_rule)(path, shape, config)

    return {path: rule(path, shape) for path, shape in shapes.items()}


def _reshaping(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> Rule:
    return Rule((name,), theirs, lambda arrays: arrays[0].reshape(ours), lambda array: [array.reshape(theirs)])


def _transposing(name: str, ours: tuple[int, ...], axes: tuple[int, ...]) -> Rule:
    """Theirs is ours with its axes permuted: theirs.shape[i] == ours.shape[axes[i]]."""
    back = tuple(np.argsort(axes))
    theirs = tuple(ours[axis] for axis in axes)
    return Rule((name,), theirs, lambda arrays: arrays[0].transpose(back), lambda array: [array.transpose(axes)])


def _transformers_rule(path: str, shape: tuple[int, ...], config: DiaConfig) -> Rule:
    names = {
        "decoder.logits_dense.weight": "logits_dense.weight",
        "decoder.embeddings.weight": "model.decoder.embeddings.embed.weight",
    }
    name = "model." + path.replace("mlp.wi_fused.", "mlp.gate_up_proj.").replace("mlp.wo.", "mlp.down_proj.")
    theirs = (shape[0] * shape[1], *shape[2:]) if path.endswith("wi_fused.weight") else shape
    return _reshaping(names.get(path, name), shape, theirs)


def _reference_rule(path: str, shape: tuple[int, ...], config: DiaConfig) -> Rule:
    dec = config.decoder
    if path == "decoder.embeddings.weight":
        return Rule(
            tuple(f"decoder.embeddings.{c}.weight" for c in range(dec.num_channels)),
            (dec.vocab_size, dec.hidden_size),
            lambda arrays: np.concatenate(arrays),
            lambda array: list(array.reshape(dec.num_channels, dec.vocab_size, dec.hidden_size)),
        )
    if len(shape) == 1 or path == "encoder.embedding.weight":
        return _reshaping(path, shape, shape)
    # Kernels stand as [in..., out...] there, with heads, channels, gate and up as axes of their own.
    outputs, inputs = shape[:-1], shape[-1:]
    if path == "decoder.logits_dense.weight":
        outputs = (dec.num_channels, dec.vocab_size)
    elif path.endswith("_proj.weight"):
        head_dim = config.encoder.head_dim if path.startswith("encoder.") else dec.head_dim
        head_dim = dec.cross_head_dim if ".cross_attention." in path else head_dim
        if path.endswith(".o_proj.weight"):
            inputs = (shape[1] // head_dim, head_dim)
        else:
            outputs = (shape[0] // head_dim, head_dim)
    return Rule(
        (path,),
        inputs + outputs,
        lambda arrays: arrays[0].reshape(shape[-1], -1).T.reshape(shape),
        lambda array: [array.reshape(-1, shape[-1]).T.reshape(inputs + outputs)],
    )


def _dac_rule(path: str, shape: tuple[int, ...], layout: str, config: DacConfig) -> Rule:
    name = path + ".weight" if path.endswith(".codebook") else path
    if layout == "descript":
        name = _descript_name(name, len(config.strides))
    if path.endswith(".alpha"):
        return _reshaping(name, shape, (1, *shape, 1))
    if len(shape) == 3 and ".conv_t1." in path:  # ours [width, in, out], the width reversed; theirs [in, out, width]
        return Rule(
            (name,),
            (shape[1], shape[2], shape[0]),
            lambda arrays: arrays[0].transpose(2, 0, 1)[::-1],
            lambda array: [array[::-1].transpose(1, 2, 0)],
        )
    if len(shape) == 3:  # ours [width, in, out]; theirs [out, in, width]
        return _transposing(name, shape, (2, 1, 0))
    return _reshaping(name, shape, shape)


def _descript_name(path: str, blocks: int) -> str:
    """`dac_44khz`'s name -> `weights.pth`'s, where every module is a number in a sequence."""
    part, *rest = path.split(".")
    if part == "quantizer":
        return path
    top = "encoder.block" if part == "encoder" else "decoder.model"
    if rest[0] != "block":
        place = {"conv1": 0, "snake1": blocks + 1, "conv2": blocks + 2}[rest[0]]
        return f"{top}.{place}.{rest[1]}"
    block, module, *rest = rest[1:]
    units = {f"res_unit{i + 1}": i + (0 if part == "encoder" else 2) for i in range(3)}
    if module in units:
        inner = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}[rest[0]]
        return f"{top}.{int(block) + 1}.block.{units[module]}.block.{inner}.{rest[1]}"
    inner = {"snake1": 3, "conv1": 4} if part == "encoder" else {"snake1": 0, "conv_t1": 1}
    return f"{top}.{int(block) + 1}.block.{inner[module]}.{rest[0]}"


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


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank changes to a model's kernels: gain * b a, with a [rank, in] and b [out, rank] (Hu et al., 2021)."""

    gain: float
    pairs: dict[str, tuple[np.ndarray, np.ndarray]]

    def merge(self, path: str, kernel: np.ndarray) -> np.ndarray:
        """The kernel at a path of ours, changed in float32; what has no pair stays as it is."""
        if path not in self.pairs:
            return kernel
        a, b = self.pairs[path]
        return kernel.astype(np.float32) + np.float32(self.gain) * (b @ a).reshape(kernel.shape)


def open_adapter(folder: str | os.PathLike, wanted: Mapping[str, Any]) -> Adapter:
    """Reads an adapter's directory: `adapter.json` with its rank and alpha, `adapter.safetensors` with its matrices.

    Args:
        wanted: the model's parameters by path, whose shapes it must go with.

    Raises:
        CheckpointError: it cannot be read, or belongs to another model.
    """
    folder = Path(folder)
    try:
        settings = read_json(folder / "adapter.json")
        gain = float(settings["alpha"]) / int(settings["rank"])
        with safe_open(folder / "adapter.safetensors", framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (ConfigError, KeyError, TypeError, ValueError, ZeroDivisionError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is not a usable adapter ({error}).") from None
    pairs = {}
    for name in [n for n in arrays if n.endswith(".a")]:
        path, a, b = name.removesuffix("a") + "weight", arrays[name], arrays.get(name.removesuffix("a") + "b")
        fits = path in wanted and b is not None and a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]
        if (
            not fits
            or (math.prod(wanted[path].shape[:-1]), wanted[path].shape[-1]) != (b.shape[0], a.shape[1])
            or not np.isfinite(a).all() & np.isfinite(b).all()
        ):
            raise CheckpointError(f"The adapter {folder} does not go with this model: {name} has no kernel to change.")
        pairs[path] = (a, b)
    if 2 * len(pairs) != len(arrays):
        raise CheckpointError(f"The adapter {folder} holds tensors that belong to no pair.")
    return Adapter(gain, pairs)


def load_params(
    checkpoint: Checkpoint,
    *,
    dtype: str | None = None,
    quantize: Quantize | None = None,
    adapter: str | os.PathLike | None = None,
    progress: bool = False,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Reads a checkpoint onto the default device.

    Args:
        checkpoint: from `open_checkpoint`.
        dtype: of Dia's kernels and embeddings ("float32", "bfloat16", "float16"); None keeps the stored one. Norms and
            the codec are float32 whatever it is.
        quantize: "int8" rounds Dia's kernels as they are read. A checkpoint that is stored so is loaded so.
        adapter: the directory of an adapter that is merged into the kernels as they are read.
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
        loaded[path] = jax.device_put(array)
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
    rules = _rules(checkpoint.config, checkpoint.layout, stored)
    tensors, problems = checkpoint.tensors, list(checkpoint.problems)
    expected = {name: rule.shape for rule in rules.values() for name in rule.names}
    problems += [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    problems += [f"unknown: {name} {tensors[name].shape}" for name in tensors if name not in expected]
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
            if rounds and dtype == jnp.int8:
                kernel, scale = quantize_kernel(array)
                del array
                yield path.removesuffix("weight") + "scale", scale  # in the order in which they would be read
                yield path, kernel
                del kernel
                continue
            if array.dtype != dtype or not array.flags.c_contiguous or array.ctypes.data % ALIGNMENT:
                copy = _aligned_empty(array.shape, dtype)
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


def _aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that JAX's CPU backend takes over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _read_tensor(name: str, tensor: StoredTensor, dtypes: Collection) -> tuple[np.ndarray, list[str]]:
    empty = np.zeros(0, np.float32)
    if tensor.dtype not in dtypes:
        return empty, [f"of no usable type: {name} is {tensor.dtype}, not one of {', '.join(DTYPES)}"]
    try:
        array = tensor.read()
    except CheckpointError as error:
        return empty, [f"unreadable: {name} ({error})"]
    except Exception as error:  # whatever a damaged file makes of the libraries that read it
        return empty, [f"unreadable: {name} ({_first_line(error)[:200]})"]
    if not np.isfinite(array).all():
        return empty, [f"not finite: {name} holds NaN or infinity"]
    return array, []


# --- Writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_directory(target: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name if all goes well and vanishes if not.

    Args:
        target: of the folder.
        replace: a directory that is there is removed when the new one is whole.

    Raises:
        CheckpointError: `target` exists and is not an empty directory, or cannot be written.
    """
    target = Path(target).absolute()
    if target.exists() and not (target.is_dir() and (replace or not any(target.iterdir()))):
        raise CheckpointError(f"{target} exists already; name a new directory, or remove it first.")
    if not target.parent.is_dir():
        raise CheckpointError(f"Cannot write {target}: there is no directory {target.parent}.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        folder.chmod(0o755)
    except OSError as error:
        raise CheckpointError(f"Cannot write {target}: {error.strerror}.") from None
    try:
        yield folder
        old = folder.with_name(f"{folder.name}.old")
        if replace and target.exists():
            os.replace(target, old)
        os.replace(folder, target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"Cannot write {target}: {error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    with new_directory(target) as folder:
        write_params(folder, config, params, layout=layout)


def write_params(
    folder: Path, config: DiaConfig | DacConfig, params: nnx.State, *, layout: Layout, progress: bool = False
) -> None:
    """Writes a checkpoint's files into an existing, empty folder; see `save_params`."""
    is_dia = isinstance(config, DiaConfig)
    kinds = ("orbax", "transformers", *(("reference", "reference-pth") if is_dia else ("descript",)))
    if layout not in kinds:
        raise CheckpointError(f"Layout {layout!r} is not one of {'Dia' if is_dia else 'DAC'}'s: {', '.join(kinds)}.")
    values = _by_path(params)
    if layout == "orbax":
        arrays: Any = {path: value[...] for path, value in values.items()}
        ocp.save(str(folder.absolute() / ORBAX_FOLDER), arrays)
        _write_json(folder / "config.json", config.to_json())
        return
    if is_dia and any(value.dtype == jnp.int8 for value in values.values()):
        raise CheckpointError(f"Layout {layout!r} holds no int8 kernels; write the orbax layout.")

    if not isinstance(config, DiaConfig):
        data = config.to_json()
    elif layout == "transformers":
        dtype = np.dtype(values["decoder.logits_dense.weight"].dtype).name
        data = config.to_json() | {"torch_dtype": dtype}
    else:
        data = config.to_nested_json() if config.variant == "v0.1" else config.to_json()
    rules = _rules(config, layout.removesuffix("-pth"), {path: value.shape for path, value in values.items()})
    entries: dict[str, _Entry] = {}
    for path, rule in rules.items():
        for part, name in enumerate(rule.names):
            entries[name] = _Entry(rule.shape, np.dtype(values[path].dtype), values[path], rule.store, part)
    if layout in ("reference-pth", "descript"):
        weights: Any = {name: entry.produce() for name, entry in entries.items()}
        if isinstance(config, DacConfig):
            weights = _unfold_weight_norm(weights)
            _save_torch(folder / "weights.pth", weights, metadata={"kwargs": config.to_kwargs()})
        else:
            _save_torch(folder / f"dia-{'v0_1' if config.variant == 'v0.1' else 'v1'}.pth", weights)
    else:
        limit = MAX_SHARD_BYTES if layout == "transformers" else None
        _write_safetensors(folder, entries, max_shard_bytes=limit, progress=progress)
    if layout != "descript":
        _write_json(folder / "config.json", data)
    if isinstance(config, DiaConfig) and layout == "transformers":
        _write_json(folder / "generation_config.json", config.to_generation_json())


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor to be written, made only when its turn comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    value: Any
    store: Callable[[np.ndarray], list[np.ndarray]]
    part: int

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def produce(self) -> np.ndarray:
        return np.ascontiguousarray(self.store(np.asarray(self.value[...]))[self.part])


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _write_safetensors(
    folder: Path, entries: dict[str, _Entry], *, max_shard_bytes: int | None, progress: bool
) -> None:
    """`model.safetensors`, or shards with an index.

    Written here, because the library's own writer wants all tensors in memory at once, twice; this one streams.
    """
    shards: list[dict[str, _Entry]] = [{}]
    size = 0
    for name, entry in entries.items():
        if max_shard_bytes and size and size + entry.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += entry.nbytes
    weight_map = {}
    total = sum(entry.nbytes for entry in entries.values())
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=not progress)
    for i, shard in enumerate(shards):
        file_name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, entry in shard.items():
            header[name] = {
                "dtype": SAFETENSORS_NAMES[entry.dtype.name],
                "shape": list(entry.shape),
                "data_offsets": [offset, offset + entry.nbytes],
            }
            offset += entry.nbytes
            weight_map[name] = file_name
        data = json.dumps(header, separators=(",", ":")).encode()
        data += b" " * (-len(data) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(len(data).to_bytes(8, "little") + data)
            for entry in shard.values():
                array = entry.produce()
                file.write(array.data.cast("B") if array.dtype == np.float32 else array.tobytes())
                bar.update(array.nbytes)
    bar.close()
    if len(shards) > 1:
        _write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _unfold_weight_norm(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """w -> g = ||w||, v = w, for every convolution: folding that again gives w to the bit."""
    unfolded = {}
    for name, array in weights.items():
        if name.endswith(".weight") and array.ndim == 3:
            norm = np.sqrt(np.sum(np.square(array), axis=(1, 2), keepdims=True))
            unfolded |= {name + "_g": norm, name + "_v": array}
        else:
            unfolded[name] = array
    return unfolded


def _save_torch(path: Path, weights: dict[str, np.ndarray], metadata: Any = None) -> None:
    try:
        import torch
    except ImportError:
        raise CheckpointError(f"Writing {path.name} needs torch: pip install 'dia_jax[convert]'.") from None

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        tensors = {name: tensor(array) for name, array in weights.items()}
        torch.save({"state_dict": tensors, "metadata": metadata} if metadata else tensors, path)


# --- Converting ------------------------------------------------------------------------------------------------------


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
    with new_directory(target) as folder:
        _, params = load_params(checkpoint, dtype=dtype, quantize=quantize, progress=progress)
        write_params(folder, checkpoint.config, params, layout=layout, progress=progress)
        wanted = {path: jax.ShapeDtypeStruct(v.shape, v.dtype) for path, v in _by_path(params).items()}
        del params
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
