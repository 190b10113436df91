"""Adapters: low-rank changes to a model's kernels, in a directory of their own.

Knows `adapter.json` and `adapter.safetensors`, which training writes, and how a change is merged into a kernel. Knows
no layouts: the names in an adapter are the paths of our parameters.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dia_jax.checkpoint.tensors import DTYPES, CheckpointError, list_file
from dia_jax.config import ConfigError, short
from dia_jax.files import read_json

MAX_ALPHA = 1e6


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank changes to kernels: gain * b a, with a [rank, in] and b [out, rank] (Hu et al., 2021)."""

    gain: float
    pairs: dict[str, tuple[np.ndarray, np.ndarray]]

    def merge(self, path: str, kernel: np.ndarray) -> np.ndarray:
        """The kernel at a path of ours, changed in float32. A kernel that has no pair stays as it is."""
        if path not in self.pairs:
            return kernel
        a, b = self.pairs[path]
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
            return kernel.astype(np.float32) + np.float32(self.gain) * (b @ a).reshape(kernel.shape)


def open_adapter(folder: str | os.PathLike, wanted: Mapping[str, Any]) -> Adapter:
    """Reads an adapter's directory: `adapter.json` with its rank and alpha, `adapter.safetensors` with its matrices.

    Args:
        folder: the directory.
        wanted: the model's parameters by path, whose shapes the matrices must match.

    Raises:
        CheckpointError: the adapter cannot be read, or belongs to another model.
    """
    folder = Path(folder)
    try:
        settings: Any = read_json(folder / "adapter.json")
    except ConfigError as error:
        raise CheckpointError(f"{folder} is not a usable adapter: {error}") from None
    rank, alpha = (settings.get(key) if isinstance(settings, dict) else None for key in ("rank", "alpha"))
    if type(rank) is not int or rank < 1:
        raise CheckpointError(
            f"{folder} is not a usable adapter: its rank is {short(rank)}; it must be a whole number from 1 up."
        )
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha <= MAX_ALPHA:
        raise CheckpointError(
            f"{folder} is not a usable adapter: its alpha is {short(alpha)}; it must be a number above 0, at most "
            f"{MAX_ALPHA:,.0f}."
        )
    tensors = list_file(folder / "adapter.safetensors").tensors
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in [name for name in tensors if name.endswith(".a")]:
        base = name.removesuffix("a")
        a, b, kernel = tensors[name], tensors.get(f"{base}b"), wanted.get(f"{base}weight")
        if b is None or kernel is None or not {a.dtype, b.dtype} <= DTYPES.keys():
            raise CheckpointError(f"The adapter {folder} does not go with this model: {name} has no kernel to change.")
        out_size, in_size = math.prod(kernel.shape[:-1]), kernel.shape[-1]
        if (a.shape, b.shape) != ((rank, in_size), (out_size, rank)):
            raise CheckpointError(
                f"The adapter {folder} does not go with this model: {base}a and b are {a.shape} and {b.shape}, but the "
                f"rank is {short(rank)} and the kernel {kernel.shape}."
            )
        low, high = a.read().astype(np.float32), b.read().astype(np.float32)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CheckpointError(f"The adapter {folder} is damaged: {base}a or b holds NaN or infinity.")
        pairs[f"{base}weight"] = low, high
    if 2 * len(pairs) != len(tensors):
        raise CheckpointError(f"The adapter {folder} holds tensors that belong to no pair.")
    return Adapter(alpha / rank, pairs)
