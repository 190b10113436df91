"""class Codec: recordings of any length to codes and back, in windows of few sizes, several in a call.

Knows numpy at its doors and DAC's network below; knows no Dia and no files.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from dia_jax.config import DacConfig
from dia_jax.dac import Dac, decoder_context, encoder_context

WINDOW_SIZES = (8, 32, 128)
"""Frames that one call decodes, context not counted: a program for each."""

WINDOW = WINDOW_SIZES[-1]
"""1.5 s."""

BATCH = 4
"""Windows in a call, where that many are ready; otherwise one."""


@functools.partial(jax.jit, static_argnums=0)
def _decode(graphdef: nnx.GraphDef[Dac], params: nnx.State, codes: jax.Array, valid: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params).decode(codes, valid)


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef: nnx.GraphDef[Dac], params: nnx.State, samples: jax.Array, valid: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params).encode(samples, valid)


@dataclasses.dataclass(frozen=True)
class Codec:
    """A codec with its weights, split by `nnx.split`; works on numpy arrays of any length, window by window."""

    config: DacConfig
    graphdef: nnx.GraphDef[Dac]
    params: nnx.State

    def on(self, device: jax.Device) -> "Codec":
        """The same codec on another device."""
        return dataclasses.replace(self, params=jax.device_put(self.params, device))

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the weights of encoder and quantizer, which together decide the codes."""
        digest = hashlib.sha256()
        for part in ("encoder", "quantizer"):
            for value in jax.tree.leaves(self.params[part]):
                digest.update(np.asarray(value).tobytes())
        return digest.hexdigest()[:16]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decodes a recording; the samples are those of decoding it whole.

        Args:
            codes: int [T, C], each in 0 .. codebook_size - 1.

        Returns:
            float32 [T * hop].
        """
        windows = [(codes, start, min(start + WINDOW, len(codes))) for start in range(0, len(codes), WINDOW)]
        return np.concatenate([np.zeros(0, np.float32), *self.decode_windows(windows)])

    def decode_windows(self, windows: Sequence[tuple[np.ndarray, int, int]]) -> list[np.ndarray]:
        """Decodes parts of recordings, several in one call.

        Args:
            windows: codes int [T, C], start and stop of each; stop - start <= `WINDOW`. The codes must reach to
                stop + `decoder_context`, or be the whole recording.

        Returns:
            float32 [(stop - start) * hop] of each: the samples that decoding the whole recording would give.
        """
        context, hop = decoder_context(self.config), self.config.hop
        samples: list[Any] = [None] * len(windows)
        for size in WINDOW_SIZES:
            of_size = [i for i, (_, start, stop) in enumerate(windows) if _window_size(stop - start) == size]
            for group in _groups(of_size):
                codes = np.zeros((len(group), size + 2 * context, self.config.num_codebooks), np.int32)
                valid = np.zeros(len(group), np.int32)
                begins = []
                for row, i in enumerate(group):
                    whole, start, stop = windows[i]
                    begins.append(max(start - context, 0))
                    part = whole[begins[-1] : stop + context]
                    codes[row, : len(part)] = part
                    valid[row] = len(part)
                out = np.asarray(_decode(self.graphdef, self.params, codes, valid))
                for row, i in enumerate(group):
                    _, start, stop = windows[i]
                    samples[i] = out[row, (start - begins[row]) * hop : (stop - begins[row]) * hop]
        return samples

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Encodes a recording; see `encode_all`."""
        return self.encode_all([samples])[0]

    def encode_all(self, recordings: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encodes recordings of any length; the codes are those of encoding each whole.

        Args:
            recordings: float32 [n] each, at the codec's rate; zeros fill the last frame.

        Returns:
            int32 [ceil(n / hop), C] each.
        """
        context, hop = encoder_context(self.config), self.config.hop
        frames = [-(-len(samples) // hop) for samples in recordings]
        codes = [np.zeros((count, self.config.num_codebooks), np.int32) for count in frames]
        windows = [(i, start) for i, count in enumerate(frames) for start in range(0, count, WINDOW)]
        for group in _groups(windows):
            samples = np.zeros((len(group), (WINDOW + 2 * context) * hop), np.float32)
            valid = np.zeros(len(group), np.int32)
            for row, (i, start) in enumerate(group):
                begin = max(start - context, 0) * hop
                part = recordings[i][begin : begin + samples.shape[1]]
                samples[row, : len(part)] = part
                valid[row] = -(-len(part) // hop)
            out = np.asarray(_encode(self.graphdef, self.params, samples, valid))
            for row, (i, start) in enumerate(group):
                stop, begin = min(start + WINDOW, frames[i]), max(start - context, 0)
                codes[i][start:stop] = out[row, start - begin : stop - begin]
        return codes

    def compile(self, *, encoder: bool = False) -> None:
        """Compiles the programs of the decoder, and those of the encoder too if asked."""
        for count in (1, BATCH):
            for size in WINDOW_SIZES:
                codes = np.zeros((size, self.config.num_codebooks), np.int32)
                self.decode_windows([(codes, 0, size)] * count)
            if encoder:
                self.encode_all([np.zeros(self.config.hop, np.float32)] * count)


def _window_size(frames: int) -> int:
    return next(size for size in WINDOW_SIZES if size >= frames)


def _groups(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """`BATCH` at a time as long as that many are left, then one at a time: nothing is computed for padding."""
    whole = len(items) - len(items) % BATCH
    yield from (items[i : i + BATCH] for i in range(0, whole, BATCH))
    yield from (items[i : i + 1] for i in range(whole, len(items)))
