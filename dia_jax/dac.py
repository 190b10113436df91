"""The Descript Audio Codec (Kumar et al., 2023): samples to codes and back, as Flax NNX modules.

Knows sizes and weights; knows no Dia. The parameters' paths are those of `descript/dac_44khz` on the hub; activations
are [B, time, channels] and convolution kernels [width, in, out]. Everything is float32, products included.

Everything is convolutional with a finite receptive field, so a window of frames with enough context on both sides gives
exactly what the whole would. `decode_codes` and `encode_samples` build on that: one compiled program a window size,
whatever the length, in bounded memory. The right end of a clip inside a fixed window is made by zeroing, in front of
every convolution, what lies behind it; that is what the padding of a convolution over the whole clip would have read.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dia_jax.config import DacConfig

WINDOW_FRAMES = 128
"""Frames that one call decodes or encodes, context not counted: 1.5 s."""

KERNEL = 7
DILATIONS = (1, 3, 9)


class Conv(nnx.Module):
    """A convolution that keeps the length (odd width, padded by half of it) or divides it by the stride."""

    def __init__(self, in_size: int, out_size: int, width: int, *, stride: int = 1, dilation: int = 1, rngs: nnx.Rngs):
        self.stride, self.dilation = stride, dilation
        self.padding = stride // 2 if stride > 1 else (width - 1) * dilation // 2
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1))
        self.weight = nnx.Param(init(rngs.params(), (width, in_size, out_size), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_size,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        out = jax.lax.conv_general_dilated(
            x,
            self.weight[...],
            window_strides=(self.stride,),
            padding=[(self.padding, self.padding)],
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return out + self.bias[...]


class ConvTranspose(nnx.Module):
    """The transposed convolution that multiplies the length by an even stride: width 2s, padding s / 2."""

    def __init__(self, in_size: int, out_size: int, stride: int, *, rngs: nnx.Rngs):
        self.stride = stride
        init = jax.nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", in_axis=(0, 1))
        self.weight = nnx.Param(init(rngs.params(), (2 * stride, in_size, out_size), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_size,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        width = 2 * self.stride
        edge = width - 1 - self.stride // 2
        out = jax.lax.conv_general_dilated(
            x,
            self.weight[...][::-1],
            window_strides=(1,),
            padding=[(edge, edge)],
            lhs_dilation=(self.stride,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return out + self.bias[...]


class Snake(nnx.Module):
    """x + sin(alpha x)^2 / (alpha + 1e-9) (Ziyin et al., 2020), one alpha a channel; 0 stays 0."""

    def __init__(self, size: int):
        self.alpha = nnx.Param(jnp.ones((size,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        alpha = self.alpha[...]
        return x + jnp.square(jnp.sin(alpha * x)) / (alpha + 1e-9)


class ResidualUnit(nnx.Module):
    def __init__(self, size: int, dilation: int, *, rngs: nnx.Rngs):
        self.snake1 = Snake(size)
        self.conv1 = Conv(size, size, KERNEL, dilation=dilation, rngs=rngs)
        self.snake2 = Snake(size)
        self.conv2 = Conv(size, size, 1, rngs=rngs)

    def __call__(self, x: jax.Array, clip: "Clip") -> jax.Array:
        h = self.conv1(clip(self.snake1(x)))
        return x + self.conv2(self.snake2(h))


Clip = Callable[[jax.Array], jax.Array]
"""Zeroes what lies behind a clip's end, at whatever rate the array is."""


def _clip_at(valid: jax.Array, of: int) -> Clip:
    """Keeps the first `valid` of `of` parts of the time axis of [B, time, channels]; valid is int [B]."""

    def clip(x: jax.Array) -> jax.Array:
        rate = x.shape[1] // of
        return jnp.where(jnp.arange(x.shape[1])[None, :, None] < valid[:, None, None] * rate, x, 0.0)

    return clip


class EncoderBlock(nnx.Module):
    def __init__(self, size: int, stride: int, *, rngs: nnx.Rngs):
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(size, d, rngs=rngs) for d in DILATIONS)
        self.snake1 = Snake(size)
        self.conv1 = Conv(size, 2 * size, 2 * stride, stride=stride, rngs=rngs)

    def __call__(self, x: jax.Array, clip: Clip) -> jax.Array:
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = unit(x, clip)
        return self.conv1(clip(self.snake1(x)))


class Encoder(nnx.Module):
    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        size = config.encoder_size
        self.conv1 = Conv(1, size, KERNEL, rngs=rngs)
        self.block = nnx.List([EncoderBlock(size * 2**i, stride, rngs=rngs) for i, stride in enumerate(config.strides)])
        self.snake1 = Snake(config.latent_size)
        self.conv2 = Conv(config.latent_size, config.latent_size, 3, rngs=rngs)

    def __call__(self, samples: jax.Array, clip: Clip) -> jax.Array:
        x = self.conv1(clip(samples[..., None]))
        for block in self.block:
            x = block(x, clip)
        return self.conv2(clip(self.snake1(x)))


class DecoderBlock(nnx.Module):
    def __init__(self, size: int, stride: int, *, rngs: nnx.Rngs):
        self.snake1 = Snake(size)
        self.conv_t1 = ConvTranspose(size, size // 2, stride, rngs=rngs)
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(size // 2, d, rngs=rngs) for d in DILATIONS)

    def __call__(self, x: jax.Array, clip: Clip) -> jax.Array:
        x = self.conv_t1(clip(self.snake1(x)))
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = unit(x, clip)
        return x


class Decoder(nnx.Module):
    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        size = config.decoder_size
        self.conv1 = Conv(config.latent_size, size, KERNEL, rngs=rngs)
        self.block = nnx.List(
            [DecoderBlock(size // 2**i, stride, rngs=rngs) for i, stride in enumerate(config.strides[::-1])]
        )
        self.snake1 = Snake(size // 2 ** len(config.strides))
        self.conv2 = Conv(size // 2 ** len(config.strides), 1, KERNEL, rngs=rngs)

    def __call__(self, latents: jax.Array, clip: Clip) -> jax.Array:
        x = self.conv1(clip(latents))
        for block in self.block:
            x = block(x, clip)
        return jnp.tanh(self.conv2(clip(self.snake1(x))))[..., 0]


class VectorQuantizer(nnx.Module):
    """One codebook: the nearest entry between L2-normalised vectors; what comes out is the entry itself, projected."""

    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        self.in_proj = Conv(config.latent_size, config.codebook_dim, 1, rngs=rngs)
        self.out_proj = Conv(config.codebook_dim, config.latent_size, 1, rngs=rngs)
        self.codebook = nnx.Param(
            jax.random.normal(rngs.params(), (config.codebook_size, config.codebook_dim), jnp.float32)
        )

    def scores(self, residual: jax.Array) -> jax.Array:
        """float32 [B, T, latent] -> float32 [B, T, codebook_size], largest at the nearest entry."""
        latents, codebook = _normalize(self.in_proj(residual)), _normalize(self.codebook[...])
        product = jnp.matmul(latents, codebook.T, precision=jax.lax.Precision.HIGHEST)
        return 2 * product - jnp.sum(jnp.square(codebook), axis=-1)

    def __call__(self, codes: jax.Array) -> jax.Array:
        """int [B, T] -> float32 [B, T, latent]."""
        return self.out_proj(self.codebook[...][codes])


def _normalize(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Quantizer(nnx.Module):
    """Residual vector quantization: each codebook takes what the ones before it left over."""

    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        self.quantizers = nnx.List([VectorQuantizer(config, rngs=rngs) for _ in range(config.num_codebooks)])

    def encode(self, latents: jax.Array) -> jax.Array:
        """float32 [B, T, latent] -> int32 [B, T, C]."""
        codes = []
        for quantizer in self.quantizers:
            codes.append(jnp.argmax(quantizer.scores(latents), axis=-1).astype(jnp.int32))
            latents = latents - quantizer(codes[-1])
        return jnp.stack(codes, axis=-1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """int [B, T, C] -> float32 [B, T, latent]."""
        return sum((quantizer(codes[..., i]) for i, quantizer in enumerate(self.quantizers)), jnp.float32(0))


class Dac(nnx.Module):
    """The codec. `encode` and `decode` are pure and take clips padded to one length; `valid` says what is real."""

    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.quantizer = Quantizer(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, samples: jax.Array, valid: jax.Array) -> jax.Array:
        """float32 [B, T * hop], of which the first valid[b] * hop are real -> int32 [B, T, C]."""
        frames = samples.shape[1] // self.config.hop
        return self.quantizer.encode(self.encoder(samples, _clip_at(valid, frames)))

    def decode(self, codes: jax.Array, valid: jax.Array) -> jax.Array:
        """int [B, T, C], of which the first valid[b] frames are real -> float32 [B, T * hop] in -1 .. 1."""
        return self.decoder(self.quantizer.decode(codes), _clip_at(valid, codes.shape[1]))


def decoder_context(config: DacConfig) -> int:
    """Frames on either side on which a decoded frame depends.

    Walks the receptive field backwards from the samples [0, hop) of a frame: a convolution of width w and dilation d
    adds d (w - 1) / 2 on either side; the transposed one of stride s reads input i for the outputs s i - s / 2 .. s i +
    3 s / 2 - 1.
    """
    first, last = 0, config.hop - 1  # samples that are asked for
    widen = (KERNEL - 1) // 2
    first, last = first - widen, last + widen
    for stride in config.strides:
        first, last = first - widen * sum(DILATIONS), last + widen * sum(DILATIONS)
        first, last = -((-(first - 3 * stride // 2 + 1)) // stride), (last + stride // 2) // stride
    return max(-(first - widen), last + widen)


def encoder_context(config: DacConfig) -> int:
    """Frames on either side on which an encoded frame depends; `decoder_context` the other way round.

    The strided convolution of stride s reads for output i the inputs s i - s / 2 .. s i + 3 s / 2 - 1.
    """
    widen = (KERNEL - 1) // 2
    first, last = -1, 1  # conv2, width 3
    for stride in config.strides[::-1]:
        first, last = first * stride - stride // 2, last * stride + 3 * stride // 2 - 1
        first, last = first - widen * sum(DILATIONS), last + widen * sum(DILATIONS)
    first, last = first - widen, last + widen
    return max(-(first // config.hop), last // config.hop)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graphdef: nnx.GraphDef[Dac], params: nnx.State, codes: jax.Array, valid: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params).decode(codes, valid)


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef: nnx.GraphDef[Dac], params: nnx.State, samples: jax.Array, valid: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params).encode(samples, valid)


def decode_window(
    codec: tuple[nnx.GraphDef[Dac], nnx.State],
    codes: np.ndarray,
    start: int,
    stop: int,
    *,
    config: DacConfig,
    window: int = WINDOW_FRAMES,
) -> np.ndarray:
    """Decodes frames start .. stop - 1 of a clip: at most `window` of them, in one call of one shape.

    Args:
        codec: the split module.
        codes: int [T, C], each in 0 .. codebook_size - 1. More may follow behind them if they reach to
            stop + `decoder_context`.
        window: frames that the program is made for.

    Returns:
        float32 [(stop - start) * hop], the samples that decoding the whole clip would give.
    """
    context = decoder_context(config)
    begin = max(start - context, 0)
    part = codes[begin : stop + context]
    padded = np.zeros((1, window + 2 * context, config.num_codebooks), np.int32)
    padded[0, : len(part)] = part
    out = np.asarray(_decode(*codec, padded, np.array([len(part)], np.int32)))[0]
    return out[(start - begin) * config.hop : (stop - begin) * config.hop]


def decode_codes(
    codec: tuple[nnx.GraphDef[Dac], nnx.State], codes: np.ndarray, *, config: DacConfig, window: int = WINDOW_FRAMES
) -> np.ndarray:
    """Decodes a clip of any length, window by window; the samples are those of decoding it whole.

    Args:
        codec: the split module.
        codes: int [T, C], each in 0 .. codebook_size - 1.
        window: frames a call, from 1 up.

    Returns:
        float32 [T * hop].
    """
    samples = [
        decode_window(codec, codes, start, min(start + window, len(codes)), config=config, window=window)
        for start in range(0, len(codes), window)
    ]
    return np.concatenate([np.zeros(0, np.float32), *samples])


def encode_samples(
    codec: tuple[nnx.GraphDef[Dac], nnx.State], samples: np.ndarray, *, config: DacConfig, window: int = WINDOW_FRAMES
) -> np.ndarray:
    """Encodes a clip of any length, window by window; the codes are those of encoding it whole.

    Args:
        codec: the split module.
        samples: float32 [n] at the codec's rate; zeros fill the last frame.
        window: frames a call, from 1 up.

    Returns:
        int32 [ceil(n / hop), C].
    """
    context, hop = encoder_context(config), config.hop
    frames = -(-len(samples) // hop)
    codes = np.zeros((frames, config.num_codebooks), np.int32)
    for start in range(0, frames, window):
        begin = max(start - context, 0)
        part = samples[begin * hop : (begin + window + 2 * context) * hop]
        padded = np.zeros((1, (window + 2 * context) * hop), np.float32)
        padded[0, : len(part)] = part
        stop = min(start + window, frames)
        out = _encode(*codec, padded, np.array([-(-len(part) // hop)], np.int32))[0]
        codes[start:stop] = out[start - begin : stop - begin]
    return codes
