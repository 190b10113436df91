"""The names and shapes of each layout: which stored tensors become which of our parameters, and back.

Knows Dia's two layouts, DAC's two layouts and what older or compiled checkpoints do to names. Knows `StoredTensor` as a
shape and a function; knows no files.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from dia_jax.checkpoint.tensors import DTYPES, CheckpointError, StoredTensor
from dia_jax.config import DacConfig, DiaConfig, short

Kind = Literal["dia", "dac"]
StoredLayout = Literal["orbax", "transformers", "reference", "descript"]

SIGNS: tuple[tuple[str, Kind, StoredLayout], ...] = (
    ("model.encoder.", "dia", "transformers"),
    ("model.decoder.", "dia", "transformers"),
    ("encoder.layers.", "dia", "reference"),
    ("decoder.layers.", "dia", "reference"),
    ("decoder.model.", "dac", "descript"),
    ("encoder.conv1.", "dac", "transformers"),
    ("decoder.conv1.", "dac", "transformers"),
)
"""A prefix of names, and what it shows. Our own names are those of the reference and of `dac_44khz`."""

DERIVED = (".timescale", ".inv_freq", ".original_inv_freq")
"""Endings of RoPE's frequencies, which are recomputed."""

TRANSFORMERS_NAMES = (
    ("decoder.logits_dense.", "logits_dense."),
    ("decoder.embeddings.", "model.decoder.embeddings.embed."),
    ("encoder.", "model.encoder."),
    ("decoder.", "model.decoder."),
)
"""Our prefix and that of Dia in transformers; the first that fits holds."""

LEAVES = ("scale", "kernel", "embedding")
"""Flax's names for what is called `weight` in all layouts but ours."""

TRANSFORMERS_MODULES = ((".mlp.wi_fused.", ".mlp.gate_up_proj."), (".mlp.wo.", ".mlp.down_proj."))

RESIDUAL_UNIT = ("snake1", "conv1", "snake2", "conv2")


def detect(path: Path, names: Iterable[str]) -> tuple[Kind, StoredLayout]:
    """Finds the model and its layout from the tensors' names.

    Raises:
        CheckpointError: they are neither Dia's nor DAC's.
    """
    names = sorted(names)
    for prefix, kind, layout in SIGNS:
        if any(name.startswith(prefix) for name in names):
            return kind, layout
    some = short(names[:5]) if names else "none"
    raise CheckpointError(f"{path} holds neither Dia nor DAC weights; its first tensors are: {some}.")


# --- Rules -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a layout stores one of our parameters.

    Attributes:
        names: of the stored tensors that it is made of.
        shape: of each of them.
        load: makes our array of theirs, in the order of `names`.
        store: makes theirs of ours.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    load: Callable[[list[np.ndarray]], np.ndarray]
    store: Callable[[np.ndarray], list[np.ndarray]]


def make_rules(
    config: DiaConfig | DacConfig, layout: StoredLayout, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Rule]:
    """One rule for each of our parameters' paths, whose shapes are given."""
    if layout == "orbax":
        return {path: _reshaped(path, shape, shape) for path, shape in shapes.items()}
    names = {path: _with_weight(path) for path in shapes}
    if isinstance(config, DacConfig):
        modules = _descript_modules(len(config.strides)) if layout == "descript" else {}
        return {path: _dac_rule(names[path], shape, modules) for path, shape in shapes.items()}
    make = _transformers_rule if layout == "transformers" else functools.partial(_reference_rule, config=config)
    return {path: make(names[path], shape) for path, shape in shapes.items()}


def _with_weight(path: str) -> str:
    module, leaf = path.rsplit(".", 1)
    return f"{module}.weight" if leaf in LEAVES else path


def _reshaped(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> Rule:
    return Rule((name,), theirs, lambda arrays: arrays[0].reshape(ours), lambda array: [array.reshape(theirs)])


def _transposed(name: str, ours: tuple[int, ...], axes: tuple[int, ...]) -> Rule:
    """Theirs is ours with its axes permuted: theirs.shape[i] == ours.shape[axes[i]]."""
    back = tuple(np.argsort(axes))
    theirs = tuple(ours[axis] for axis in axes)
    return Rule((name,), theirs, lambda arrays: arrays[0].transpose(back), lambda array: [array.transpose(axes)])


def _transformers_rule(path: str, shape: tuple[int, ...]) -> Rule:
    ours, theirs = next(pair for pair in TRANSFORMERS_NAMES if path.startswith(pair[0]))
    name = theirs + path.removeprefix(ours)
    for module, other in TRANSFORMERS_MODULES:
        name = name.replace(module, other)
    # Gate and up share an axis there.
    return _reshaped(name, shape, (shape[0] * shape[1], shape[2]) if len(shape) == 3 else shape)


def _reference_rule(path: str, shape: tuple[int, ...], config: DiaConfig) -> Rule:
    """Kernels are [in..., out...] there, and heads and channels have axes of their own too."""
    dec = config.decoder
    if path == "decoder.embeddings.weight":
        return Rule(
            tuple(f"decoder.embeddings.{channel}.weight" for channel in range(dec.num_channels)),
            (dec.vocab_size, dec.hidden_size),
            lambda arrays: np.concatenate(arrays),
            lambda array: list(array.reshape(dec.num_channels, dec.vocab_size, dec.hidden_size)),
        )
    if len(shape) == 1 or path == "encoder.embedding.weight":
        return _reshaped(path, shape, shape)
    head_dim = config.encoder.head_dim if path.startswith("encoder.") else dec.head_dim
    head_dim = dec.cross_head_dim if ".cross_attention." in path else head_dim
    module, inputs, outputs = path.split(".")[-2], shape[-1], math.prod(shape[:-1])
    split_axes = {
        "logits_dense": (inputs, dec.num_channels, dec.vocab_size),
        "wi_fused": (inputs, *shape[:-1]),
        "q_proj": (inputs, outputs // head_dim, head_dim),
        "k_proj": (inputs, outputs // head_dim, head_dim),
        "v_proj": (inputs, outputs // head_dim, head_dim),
        "o_proj": (inputs // head_dim, head_dim, outputs),
    }
    theirs = split_axes.get(module, (inputs, outputs))
    return Rule(
        (path,),
        theirs,
        lambda arrays: arrays[0].reshape(inputs, outputs).T.reshape(shape),
        lambda array: [array.reshape(outputs, inputs).T.reshape(theirs)],
    )


def _dac_rule(path: str, shape: tuple[int, ...], modules: Mapping[str, str]) -> Rule:
    module, leaf = path.rsplit(".", 1)
    name = f"{path}.weight" if leaf == "codebook" else f"{modules.get(module, module)}.{leaf}"
    if leaf == "alpha":
        return _reshaped(name, shape, (1, *shape, 1))
    if module.endswith(".conv_t1") and len(shape) == 3:  # ours [width, in, out], reversed; theirs [in, out, width]
        return Rule(
            (name,),
            (shape[1], shape[2], shape[0]),
            lambda arrays: arrays[0].transpose(2, 0, 1)[::-1],
            lambda array: [array[::-1].transpose(1, 2, 0)],
        )
    if len(shape) == 3:  # ours [width, in, out]; theirs [out, in, width]
        return _transposed(name, shape, (2, 1, 0))
    return _reshaped(name, shape, shape)


def _descript_modules(blocks: int) -> dict[str, str]:
    """The modules of `dac_44khz` and those of `weights.pth`, where each is a number in a sequence."""
    modules = {}
    for part, top, first_unit, own in (
        ("encoder", "encoder.block", 0, {"snake1": 3, "conv1": 4}),
        ("decoder", "decoder.model", 2, {"snake1": 0, "conv_t1": 1}),
    ):
        modules |= {
            f"{part}.conv1": f"{top}.0",
            f"{part}.snake1": f"{top}.{blocks + 1}",
            f"{part}.conv2": f"{top}.{blocks + 2}",
        }
        for block in range(blocks):
            ours, theirs = f"{part}.block.{block}", f"{top}.{block + 1}.block"
            modules |= {f"{ours}.{name}": f"{theirs}.{i}" for name, i in own.items()}
            for unit in range(3):
                place = f"{theirs}.{first_unit + unit}.block"
                modules |= {f"{ours}.res_unit{unit + 1}.{name}": f"{place}.{i}" for i, name in enumerate(RESIDUAL_UNIT)}
    return modules


# --- Tensors that are stored otherwise -------------------------------------------------------------------------------


def fold_weight_norm(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
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
            if g.shape != (v.shape[:1] + (1,) * (len(v.shape) - 1)) or {g.dtype, v.dtype} - DTYPES.keys():
                continue  # left as it is, to be reported as unknown
            del folded[name], folded[base + v_name]

            def read(g=g, v=v) -> np.ndarray:
                direction = v.read().astype(np.float32)
                norm = np.sqrt(np.sum(np.square(direction), axis=tuple(range(1, direction.ndim)), keepdims=True))
                return direction * (g.read().astype(np.float32) / np.where(norm == 0, 1, norm))

            folded[base + ".weight"] = StoredTensor(v.shape, "float32", read)
    return folded


def unfold_weight_norm(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """w -> g = ||w||, v = w, for every convolution: folding that again gives w to the bit."""
    unfolded = {}
    for name, array in weights.items():
        if name.endswith(".weight") and array.ndim == 3:
            norm = np.sqrt(np.sum(np.square(array), axis=(1, 2), keepdims=True))
            unfolded |= {name + "_g": norm, name + "_v": array}
        else:
            unfolded[name] = array
    return unfolded


def split_fused_qkv(tensors: dict[str, StoredTensor], config: DiaConfig) -> dict[str, StoredTensor]:
    """Takes `self_attention.qkv.linear.weight` ((N + 2K) H, in) apart into the reference's three projections."""
    ending, split = ".qkv.linear.weight", dict(tensors)
    for name in [n for n in tensors if n.endswith(ending)]:
        sizes = config.encoder if name.startswith("encoder.") else config.decoder
        heads = (sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads)
        fused = tensors[name]
        if len(fused.shape) != 2 or fused.shape[0] != sum(heads) * sizes.head_dim:
            continue  # left as it is, to be reported as unknown
        del split[name]
        base = name.removesuffix(ending)
        parts = [f"{base}.{projection}.weight" for projection in ("q_proj", "k_proj", "v_proj")]
        shapes = {part: (fused.shape[1], count, sizes.head_dim) for part, count in zip(parts, heads, strict=True)}
        split |= _split_tensor(fused, shapes)
    return split


def _split_tensor(fused: StoredTensor, shapes: Mapping[str, tuple[int, int, int]]) -> dict[str, StoredTensor]:
    """Several [in, heads, head_dim] out of their stack [outputs, in], which is read once for all of them."""
    held: dict[str, np.ndarray] = {}

    def read(name: str) -> np.ndarray:
        if name not in held:
            whole, first = fused.read(), 0
            for part, (inputs, count, head_dim) in shapes.items():
                rows = whole[first : first + count * head_dim]
                held[part] = np.ascontiguousarray(rows.T).reshape(inputs, count, head_dim)
                first += count * head_dim
        return held.pop(name)

    return {name: StoredTensor(shape, fused.dtype, lambda name=name: read(name)) for name, shape in shapes.items()}


def count_problems(config: DiaConfig | DacConfig, names: Iterable[str]) -> list[str]:
    """Compares how many layers or codebooks the config claims with how many have any tensor."""
    found: dict[str, set[str]] = {}
    for name in names:
        parts = name.removeprefix("model.").split(".")
        if len(parts) > 3 and parts[1] in ("layers", "quantizers"):
            found.setdefault(parts[0], set()).add(parts[2])
    if isinstance(config, DacConfig):
        claims = {"quantizer": ("num_codebooks", config.num_codebooks)}
    else:
        claims = {
            "encoder": ("encoder num_layers", config.encoder.num_layers),
            "decoder": ("decoder num_layers", config.decoder.num_layers),
        }
    return [
        f"the config's {field} is {claimed}, but the weights have {len(found.get(part, ()))}"
        for part, (field, claimed) in claims.items()
        if claimed != len(found.get(part, ()))
    ]
