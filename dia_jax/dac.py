"""The Descript Audio Codec (Kumar et al., 2023): samples to codes and back, as Flax NNX modules.

Knows sizes and weights; knows no Dia. The modules' paths are those of `descript/dac_44khz` on the hub; activations are
[B, time, channels] and convolution kernels [width, in, out]. Everything is float32, products included.

Everything is convolutional with a finite receptive field, so a window of frames with enough context on both sides gives
exactly what the whole would; `codec.py` builds on that. The right end of a recording inside a fixed window is made by
zeroing, before every convolution, what lies after it, which is what the padding of a convolution over the whole
recording would have read.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from dia_jax.compat import ModuleList
from dia_jax.config import DacConfig

KERNEL = 7
DILATIONS = (1, 3, 9)


_conv_init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1))
_transpose_init = jax.nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", in_axis=(0, 1))


def _conv(in_size: int, out_size: int, width: int, *, stride: int = 1, dilation: int = 1, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution that keeps the length (odd width, padded by half of it) or divides it by the stride."""
    padding = stride // 2 if stride > 1 else (width - 1) * dilation // 2
    return nnx.Conv(
        in_size,
        out_size,
        (width,),
        strides=stride,
        padding=((padding, padding),),
        kernel_dilation=dilation,
        precision=jax.lax.Precision.HIGHEST,
        kernel_init=_conv_init,
        rngs=rngs,
    )


def _conv_transpose(in_size: int, out_size: int, stride: int, *, rngs: nnx.Rngs) -> nnx.ConvTranspose:
    """The transposed convolution that multiplies the length by an even stride: width 2s, padding s / 2."""
    width = 2 * stride
    edge = width - 1 - stride // 2
    return nnx.ConvTranspose(
        in_size,
        out_size,
        (width,),
        strides=(stride,),
        padding=((edge, edge),),
        precision=jax.lax.Precision.HIGHEST,
        kernel_init=_transpose_init,
        rngs=rngs,
    )


class Snake(nnx.Module):
    """x + sin(alpha x)^2 / (alpha + 1e-9) (Ziyin et al., 2020), one alpha a channel; 0 stays 0."""

    def __init__(self, size: int):
        self.alpha = nnx.Param(jnp.ones((size,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        alpha = self.alpha[...]
        return x + jnp.square(jnp.sin(alpha * x)) / (alpha + 1e-9)


Trim = Callable[[jax.Array], jax.Array]
"""Zeroes what lies after a recording's end, at whatever rate the array is."""


def _trim_at(valid: jax.Array, of: int) -> Trim:
    """Keeps the first `valid` of `of` parts of the time axis of [B, time, channels]; valid is int [B]."""

    def trim(x: jax.Array) -> jax.Array:
        rate = x.shape[1] // of
        return jnp.where(jnp.arange(x.shape[1])[None, :, None] < valid[:, None, None] * rate, x, 0.0)

    return trim


class ResidualUnit(nnx.Module):
    def __init__(self, size: int, dilation: int, *, rngs: nnx.Rngs):
        self.snake1 = Snake(size)
        self.conv1 = _conv(size, size, KERNEL, dilation=dilation, rngs=rngs)
        self.snake2 = Snake(size)
        self.conv2 = _conv(size, size, 1, rngs=rngs)

    def __call__(self, x: jax.Array, trim: Trim) -> jax.Array:
        h = self.conv1(trim(self.snake1(x)))
        return x + self.conv2(self.snake2(h))


class EncoderBlock(nnx.Module):
    def __init__(self, size: int, stride: int, *, rngs: nnx.Rngs):
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(size, d, rngs=rngs) for d in DILATIONS)
        self.snake1 = Snake(size)
        self.conv1 = _conv(size, 2 * size, 2 * stride, stride=stride, rngs=rngs)

    def __call__(self, x: jax.Array, trim: Trim) -> jax.Array:
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = unit(x, trim)
        return self.conv1(trim(self.snake1(x)))


class Encoder(nnx.Module):
    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        size = config.encoder_size
        self.conv1 = _conv(1, size, KERNEL, rngs=rngs)
        self.block = ModuleList(
            [EncoderBlock(size * 2**i, stride, rngs=rngs) for i, stride in enumerate(config.strides)]
        )
        self.snake1 = Snake(config.latent_size)
        self.conv2 = _conv(config.latent_size, config.latent_size, 3, rngs=rngs)

    def __call__(self, samples: jax.Array, trim: Trim) -> jax.Array:
        x = self.conv1(trim(samples[..., None]))
        for block in self.block:
            x = block(x, trim)
        return self.conv2(trim(self.snake1(x)))


class DecoderBlock(nnx.Module):
    def __init__(self, size: int, stride: int, *, rngs: nnx.Rngs):
        self.snake1 = Snake(size)
        self.conv_t1 = _conv_transpose(size, size // 2, stride, rngs=rngs)
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(size // 2, d, rngs=rngs) for d in DILATIONS)

    def __call__(self, x: jax.Array, trim: Trim) -> jax.Array:
        x = self.conv_t1(trim(self.snake1(x)))
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = unit(x, trim)
        return x


class Decoder(nnx.Module):
    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        size = config.decoder_size
        self.conv1 = _conv(config.latent_size, size, KERNEL, rngs=rngs)
        self.block = ModuleList(
            [DecoderBlock(size // 2**i, stride, rngs=rngs) for i, stride in enumerate(config.strides[::-1])]
        )
        self.snake1 = Snake(size // 2 ** len(config.strides))
        self.conv2 = _conv(size // 2 ** len(config.strides), 1, KERNEL, rngs=rngs)

    def __call__(self, latents: jax.Array, trim: Trim) -> jax.Array:
        x = self.conv1(trim(latents))
        for block in self.block:
            x = block(x, trim)
        return jnp.tanh(self.conv2(trim(self.snake1(x))))[..., 0]


class VectorQuantizer(nnx.Module):
    """One codebook: the nearest entry between L2-normalised vectors; the output is the entry itself, projected."""

    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        self.in_proj = _conv(config.latent_size, config.codebook_dim, 1, rngs=rngs)
        self.out_proj = _conv(config.codebook_dim, config.latent_size, 1, rngs=rngs)
        self.codebook = nnx.Param(
            jax.random.normal(rngs.params(), (config.codebook_size, config.codebook_dim), jnp.float32)
        )

    def scores(self, residual: jax.Array) -> jax.Array:
        """float32 [B, T, latent] -> float32 [B, T, codebook_size], largest at the nearest entry."""
        latents, codebook = _normalize(self.in_proj(residual)), _normalize(self.codebook[...])
        # The same order as by their products, but differences tell entries apart that are nearly alike; products round
        # them to ties, and silence would be coded by chance.
        return -jnp.sum(jnp.square(latents[:, :, None] - codebook), axis=-1)

    def __call__(self, codes: jax.Array) -> jax.Array:
        """int [B, T] -> float32 [B, T, latent]."""
        return self.out_proj(self.codebook[...][codes])


def _normalize(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Quantizer(nnx.Module):
    """Residual vector quantization: each codebook quantizes what the ones before it left over."""

    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        self.quantizers = ModuleList([VectorQuantizer(config, rngs=rngs) for _ in range(config.num_codebooks)])

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
    """The codec. `encode` and `decode` are pure and take recordings padded to one length; `valid` says what is real."""

    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.quantizer = Quantizer(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, samples: jax.Array, valid: jax.Array) -> jax.Array:
        """float32 [B, T * hop], of which the first valid[b] * hop are real -> int32 [B, T, C]."""
        frames = samples.shape[1] // self.config.hop
        return self.quantizer.encode(self.encoder(samples, _trim_at(valid, frames)))

    def decode(self, codes: jax.Array, valid: jax.Array) -> jax.Array:
        """int [B, T, C], of which the first valid[b] frames are real -> float32 [B, T * hop] in -1 .. 1."""
        return self.decoder(self.quantizer.decode(codes), _trim_at(valid, codes.shape[1]))


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
