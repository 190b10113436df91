"""Dia's network: a byte-text encoder and an audio decoder over nine delayed channels, as Flax NNX modules.

Knows weights and pure calls. Key/value caches come in as arguments and go out as results; sampling, the delay pattern
and files are other rooms. The parameters' paths are the reference's names
(encoder.layers.0.self_attention.q_proj.weight); every kernel is stored as [out, in], heads flattened.

Dimensions:
    B clips          R rows of a batch (two a clip while decoding: unconditional, conditional)
    T decoder time   S key time (text, or rows of the cache)
    C channels       V vocabulary of a channel
    D model          F mlp
    N query heads    K key/value heads    G = N / K    H head_dim

Numerics: kernels and caches are in the compute dtype; norms, RoPE, softmax, the residual stream and the logits are in
float32, and every product accumulates in float32. Attention is not scaled (factor 1.0), so its scores are large and do
not bear 16 bits. Kernels may be int8 with a scale for each output instead; all else stays as it is.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dia_jax.config import DecoderConfig, DiaConfig, EncoderConfig

Quantize = Literal["int8"]
"""How kernels may be stored in fewer bits: "int8", per output channel; embeddings and norms stay as they are."""


MANY_ROWS = 512
"""From here on a product is one of training or of a long prompt; see `_product_on_cpu`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KV:
    """Keys and values of one attention layer, RoPE applied: arrays [R, K, S, H] in the compute dtype."""

    k: jax.Array
    v: jax.Array


def rope_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of RoPE (Su et al., 2021): angle = position / theta^(2i / head_dim).

    Args:
        positions: int array [R, T] or [1, T].

    Returns:
        Two float32 arrays [R, T, 1, H / 2].
    """
    # Powers in float64, rounded once: in float32 they would depend on the platform's pow, and positions multiply the
    # error.
    frequencies = np.float32(1.0) / np.power(theta, np.arange(0, head_dim, 2) / head_dim).astype(np.float32)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the first half of each head against its second half; float32 [R, T, N, H] in and out."""
    cos, sin = angles
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    # TPUs multiply float32 in bfloat16 passes and GPUs in TF32 unless told otherwise; float32 here means float32.
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """[R, K, G, T, H] and [R, K, S, H] of one dtype -> float32 [R, K, G, T, S]."""
    precision = _precision(k.dtype)
    return jnp.einsum("RKGTH,RKSH->RKGTS", q, k, precision=precision, preferred_element_type=jnp.float32)


def _scores_on_cpu(q: jax.Array, k: jax.Array) -> jax.Array:
    """`_scores` with the keys on the left, for the reason that `_product_on_cpu` gives; 16 bit has no such product."""
    if jnp.dtype(k.dtype).itemsize == 2:
        return _scores(q, k)
    precision = _precision(k.dtype)
    scores = jnp.einsum("RKSH,RKGTH->RKSGT", k, q, precision=precision, preferred_element_type=jnp.float32)
    return jnp.moveaxis(jax.lax.optimization_barrier(scores), 2, -1)


def attend(q: jax.Array, *parts: tuple[KV, jax.Array]) -> jax.Array:
    """Attention with factor 1.0 over the keys of all parts together; query head h uses key/value head h // G.

    Args:
        q: float32 [R, T, N, H].
        parts: keys and values [R, K, S, H] each, with a mask, bool [R, T, S] or what broadcasts to it; False hides a
            key.

    Returns:
        float32 [R, T, N * H].
    """
    rows, time, heads, head_dim = q.shape
    dtype = parts[0][0].k.dtype
    q = q.astype(dtype).reshape(rows, time, parts[0][0].k.shape[1], -1, head_dim).transpose(0, 2, 3, 1, 4)
    # A finite floor, so that a row with nothing to see (padding) yields numbers that are thrown away, not NaN.
    floor = jnp.finfo(jnp.float32).min
    scores = [
        jnp.where(mask[:, None, None], jax.lax.platform_dependent(q, kv.k, cpu=_scores_on_cpu, default=_scores), floor)
        for kv, mask in parts
    ]
    highest = functools.reduce(jnp.maximum, [part.max(axis=-1, keepdims=True) for part in scores])
    weights = [jnp.exp(part - highest) for part in scores]
    add = functools.partial(functools.reduce, jnp.add)
    total = add([part.sum(axis=-1, keepdims=True) for part in weights])
    # Divided by the total after the product: so many elements fewer, and none to write down again.
    mix = functools.partial(
        jnp.einsum, "RKGTS,RKSH->RKGTH", precision=_precision(dtype), preferred_element_type=jnp.float32
    )
    out = add([mix(part.astype(dtype), kv.v) for part, (kv, _) in zip(weights, parts, strict=True)])
    return (out / total).transpose(0, 3, 1, 2, 4).reshape(rows, time, heads * head_dim)


def attend_then_write(q: jax.Array, cache: KV, new: KV, start: jax.Array) -> tuple[jax.Array, KV]:
    """Attends to the cache's rows before start and to the new ones, and writes these into the cache.

    Nothing in the call reads what is written, so it is written in place. If attention read the updated cache, a TPU
    would update it in its fast memory and copy all of it back: a quarter more bytes at 16 clips.

    Args:
        q: float32 [R, T, N, H].
        cache: rows before, [R, K, S, H], S >= start + T.
        new: [R, K, T, H].
        start: int [R].
    """
    before = jnp.arange(cache.k.shape[2]) < start[:, None]
    out = attend(q, (cache, before[:, None]), (new, _causal(q.shape[1])))
    return out, _write_rows(cache, new, start)


def write_then_attend(q: jax.Array, cache: KV, new: KV, start: jax.Array) -> tuple[jax.Array, KV]:
    """The same the other way round, for XLA's CPU backend, which would copy a cache that is read before it is written.

    It puts no order between the two, and so keeps what was there.
    """
    cache = _write_rows(cache, new, start)
    positions = start[:, None] + jnp.arange(q.shape[1])  # [R, T]
    return attend(q, (cache, jnp.arange(cache.k.shape[2]) <= positions[..., None])), cache


def _causal(time: int) -> jax.Array:
    return jnp.tril(jnp.ones((1, time, time), bool))


def _write_rows(cache: KV, new: KV, start: jax.Array) -> KV:
    """Puts new [R, K, T, H] into cache [R, K, S, H] at rows start[r] .. start[r] + T - 1."""

    def write(cache: jax.Array, new: jax.Array) -> jax.Array:
        # One update a row: as one vmapped update it would be a scatter, which TPUs run as a loop over a copy of the
        # cache.
        for row in range(cache.shape[0]):
            cache = jax.lax.dynamic_update_slice(cache, new[row : row + 1], (row, 0, start[row], 0))
        return cache

    return jax.tree.map(write, cache, new)


class Linear(nnx.Module):
    """A product with a kernel [out, in], without bias; float32 [..., in] -> float32 [..., out].

    The kernel is of the compute dtype or, after `quantize`, int8 with a float32 scale for each output.
    """

    def __init__(self, in_size: int, out_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0)
        self.weight = nnx.Param(init(rngs.params(), (out_size, in_size), dtype))
        self.scale: nnx.Param | None = nnx.data(None)

    def quantize(self) -> None:
        """Rounds the kernel to int8."""
        weight, scale = quantize_kernel(self.weight[...])
        self.weight, self.scale = nnx.Param(weight), nnx.Param(scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        weight, rows = self.weight[...], x.reshape(-1, x.shape[-1])
        if self.scale is None:
            out = jax.lax.platform_dependent(weight, rows.astype(self.dtype), cpu=_product_on_cpu, default=_product)
        else:
            # Where the backend converts the kernel on its way into the product, only int8 crosses the memory bus. XLA's
            # CPU backend would write the converted kernel out first, so there the rows become int8 instead.
            out = self.scale[...] * jax.lax.platform_dependent(
                weight,
                rows,
                cpu=_int8_product,
                default=lambda weight, rows: _product(weight.astype(self.dtype), rows.astype(self.dtype)),
            )
        return out.reshape(*x.shape[:-1], -1)


def _product(weight: jax.Array, rows: jax.Array) -> jax.Array:
    """[out, in] and [rows, in] of one dtype -> float32 [rows, out]."""
    return jnp.einsum("OI,RI->RO", weight, rows, precision=_precision(rows.dtype), preferred_element_type=jnp.float32)


def _product_on_cpu(weight: jax.Array, rows: jax.Array) -> jax.Array:
    """`_product` with the operands in the order that XLA's CPU backend is fast at.

    It packs the right operand anew on every call: with the kernel there, the few rows of a decode step take two and a
    half times as long in float32 and a quarter longer in int8. In 16 bit it is the other way round, and with many rows
    the transpose behind it costs more than that saves: the gradients of a small model take a sixth longer.
    """
    if jnp.dtype(rows.dtype).itemsize == 2 or (rows.dtype == jnp.float32 and len(rows) >= MANY_ROWS):
        return _product(weight, rows)
    dtype = jnp.int32 if rows.dtype == jnp.int8 else jnp.float32
    out = jnp.einsum("OI,RI->OR", weight, rows, precision=_precision(rows.dtype), preferred_element_type=dtype)
    # The barrier keeps XLA from seeing that a transposed product is the product of the swapped operands.
    return jax.lax.optimization_barrier(out).T.astype(jnp.float32)


def _int8_product(weight: jax.Array, rows: jax.Array) -> jax.Array:
    """int8 [out, in] and float32 [rows, in] -> float32 [rows, out] by products of int8 alone.

    A row is written as step * (high + low / 254), two rows of int8, where step is its largest magnitude / 127: an error
    of at most step / 508 an element. The kernel is read once for both.
    """
    step = jnp.maximum(jnp.max(jnp.abs(rows), axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny) / 127
    scaled = rows / step
    high = jnp.round(scaled)
    low = jnp.round((scaled - high) * 254)
    both = _product_on_cpu(weight, jnp.concatenate([high, low]).astype(jnp.int8))
    high, low = jnp.split(both, 2)
    return (high + low / 254) * step


def quantize_kernel(weight: jax.Array | np.ndarray) -> tuple[Any, Any]:
    """Rounds a kernel [out, in] to int8, symmetric, one scale an output: weight ~ scale * kernel.

    Returns:
        int8 [out, in] in -127 .. 127 and float32 [out], of the kind of array that went in.
    """
    numbers = np if isinstance(weight, np.ndarray) else jnp
    weight = weight.astype(np.float32)
    scale = numbers.maximum(numbers.abs(weight).max(axis=1), np.finfo(np.float32).tiny) / np.float32(127)
    return numbers.round(weight / scale[:, None]).astype(np.int8), scale


class Embedding(nnx.Module):
    """A table [V, D] looked up by id; gives float32."""

    def __init__(self, vocab_size: int, size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (vocab_size, size), dtype))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.weight[...][ids].astype(jnp.float32)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich, 2019), in float32."""

    def __init__(self, size: int, eps: float):
        self.weight = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps) * self.weight[...]


class Mlp(nnx.Module):
    """SwiGLU: wo(silu(gate) * up), with gate and up side by side in one kernel [D, 2F]."""

    def __init__(self, size: int, mlp_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.wi_fused = Linear(size, 2 * mlp_size, dtype=dtype, rngs=rngs)
        self.wo = Linear(mlp_size, size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = jnp.split(self.wi_fused(x), 2, axis=-1)
        return self.wo(jax.nn.silu(gate) * up)


class Attention(nnx.Module):
    """The four projections of an attention layer; who attends to what is the layer's business."""

    def __init__(
        self,
        size: int,
        key_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.head_dim = head_dim
        self.q_proj = Linear(size, num_heads * head_dim, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(key_size, num_kv_heads * head_dim, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(key_size, num_kv_heads * head_dim, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(num_heads * head_dim, size, dtype=dtype, rngs=rngs)

    def queries(self, x: jax.Array, angles: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """float32 [R, T, D] -> float32 [R, T, N, H], rotated if angles are given."""
        q = self._heads(self.q_proj(x))
        return q if angles is None else apply_rope(q, angles)

    def keys_values(self, x: jax.Array, angles: tuple[jax.Array, jax.Array] | None) -> KV:
        """float32 [R, S, D] -> keys (rotated if angles are given) and values [R, K, S, H] in the compute dtype."""
        k, v = self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        k = k if angles is None else apply_rope(k, angles)
        dtype = self.k_proj.dtype
        return KV(k=k.swapaxes(1, 2).astype(dtype), v=v.swapaxes(1, 2).astype(dtype))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


class EncoderLayer(nnx.Module):
    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size = config.hidden_size
        self.pre_sa_norm = RMSNorm(size, config.norm_eps)
        self.self_attention = Attention(
            size, size, config.num_heads, config.num_kv_heads, config.head_dim, dtype=dtype, rngs=rngs
        )
        self.post_sa_norm = RMSNorm(size, config.norm_eps)
        self.mlp = Mlp(size, config.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, angles: tuple[jax.Array, jax.Array], mask: jax.Array) -> jax.Array:
        attention = self.self_attention
        h = self.pre_sa_norm(x)
        x = x + attention.o_proj(attend(attention.queries(h, angles), (attention.keys_values(h, angles), mask)))
        return x + self.mlp(self.post_sa_norm(x))


class Encoder(nnx.Module):
    """Bidirectional over the bytes of a script; padding is masked as a key, and what padded rows hold is never read."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([EncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def __call__(self, text: jax.Array, text_mask: jax.Array) -> jax.Array:
        """int [R, S] and bool [R, S] (False where padded) -> float32 [R, S, D]."""
        x = self.embedding(text)
        angles = rope_angles(jnp.arange(text.shape[1])[None], self.config.head_dim, self.config.rope_theta)
        for layer in self.layers:
            x = layer(x, angles, text_mask[:, None, :])
        return self.norm(x)


class DecoderLayer(nnx.Module):
    def __init__(self, config: DiaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        dec = config.decoder
        size = dec.hidden_size
        self.pre_sa_norm = RMSNorm(size, dec.norm_eps)
        self.self_attention = Attention(
            size, size, dec.num_heads, dec.num_kv_heads, dec.head_dim, dtype=dtype, rngs=rngs
        )
        self.pre_ca_norm = RMSNorm(size, dec.norm_eps)
        self.cross_attention = Attention(
            size,
            config.encoder.hidden_size,
            dec.cross_num_heads,
            dec.cross_num_kv_heads,
            dec.cross_head_dim,
            dtype=dtype,
            rngs=rngs,
        )
        self.pre_mlp_norm = RMSNorm(size, dec.norm_eps)
        self.mlp = Mlp(size, dec.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        cross_angles: tuple[jax.Array, jax.Array] | None,
        cross: tuple[KV, jax.Array],
        cache: KV | None,
        start: jax.Array,
    ) -> tuple[jax.Array, KV]:
        x, kv = self.attend_self(x, angles, cache, start)
        return self.attend_text(x, cross_angles, cross), kv

    def attend_self(
        self, x: jax.Array, angles: tuple[jax.Array, jax.Array], cache: KV | None, start: jax.Array
    ) -> tuple[jax.Array, KV]:
        """Adds what the rows before have to say; gives the keys and values too, or the cache that they are in."""
        attention = self.self_attention
        h = self.pre_sa_norm(x)
        q, kv = attention.queries(h, angles), attention.keys_values(h, angles)
        if cache is None:
            out = attend(q, (kv, _causal(x.shape[1])))
        else:
            out, kv = jax.lax.platform_dependent(q, cache, kv, start, cpu=write_then_attend, default=attend_then_write)
        return x + attention.o_proj(out), kv

    def attend_text(
        self, x: jax.Array, angles: tuple[jax.Array, jax.Array] | None, cross: tuple[KV, jax.Array]
    ) -> jax.Array:
        """Adds what the script has to say, and the layer's own thoughts on it."""
        x = x + self.cross_attention.o_proj(attend(self.cross_queries(x, angles), cross))
        return x + self.mlp(self.pre_mlp_norm(x))

    def cross_queries(self, x: jax.Array, angles: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """What is asked of the script: float32 [R, T, N, H] from the stream behind the self-attention."""
        return self.cross_attention.queries(self.pre_ca_norm(x), angles)


class Decoder(nnx.Module):
    """Causal over the rows of the delayed grid, cross-attending to the encoded script."""

    def __init__(self, config: DiaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        dec = config.decoder
        self.config: DecoderConfig = dec
        self.rope_in_cross_attention = config.variant == "v0.1"
        # One table for all channels, channel c's ids at c * V: nine lookups in one gather.
        self.embeddings = Embedding(dec.num_channels * dec.vocab_size, dec.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([DecoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(dec.num_layers)])
        self.norm = RMSNorm(dec.hidden_size, dec.norm_eps)
        self.logits_dense = Linear(dec.hidden_size, dec.num_channels * dec.vocab_size, dtype=dtype, rngs=rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [R, T, C] -> float32 [R, T, D], the sum over the channels."""
        offsets = jnp.arange(self.config.num_channels) * self.config.vocab_size
        return self.embeddings(tokens + offsets).sum(axis=-2)

    def cross_cache(self, encoded: jax.Array) -> list[KV]:
        """The cross-attention's keys and values of every layer, from the encoder's output float32 [R, S, D]."""
        angles = self.cross_angles(jnp.arange(encoded.shape[1])[None])
        return [layer.cross_attention.keys_values(encoded, angles) for layer in self.layers]

    def empty_cache(self, rows: int, length: int) -> list[KV]:
        """Self-attention caches of zeros, one a layer, for `rows` rows of the batch and `length` rows of the grid."""
        dec = self.config
        zeros = jnp.zeros((rows, dec.num_kv_heads, length, dec.head_dim), self.logits_dense.dtype)
        return [KV(k=zeros, v=zeros) for _ in self.layers]

    def __call__(
        self,
        tokens: jax.Array,
        start: jax.Array,
        cross: list[KV],
        text_mask: jax.Array,
        cache: list[KV] | None = None,
    ) -> tuple[jax.Array, list[KV]]:
        """Runs rows start[r] .. start[r] + T - 1 of the grid.

        Args:
            tokens: int [R, T, C].
            start: int [R], the position of each row's first token.
            cross: from `cross_cache`.
            text_mask: bool [R, S_text], False where the script is padded.
            cache: keys and values of the rows before, [R, K, S, H] a layer, S >= start + T; without it the call
                attends to its own rows alone.

        Returns:
            float32 [R, T, D], normed, ready for `logits`; and the caches with the new rows written in.
        """
        positions = start[:, None] + jnp.arange(tokens.shape[1])  # [R, T]
        x = self.embed(tokens)
        angles = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        cross_angles = self.cross_angles(positions)
        new_cache = []
        for i, layer in enumerate(self.layers):
            before = None if cache is None else cache[i]
            x, kv = layer(x, angles, cross_angles, (cross[i], text_mask[:, None]), before, start)
            new_cache.append(kv)
        return self.norm(x), new_cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [R, T, D] -> float32 [R, T, C, V]."""
        # Behind the barrier XLA reshapes the logits; without it, a TPU's compiler reshapes the kernel on every step.
        logits = jax.lax.optimization_barrier(self.logits_dense(hidden))
        return logits.reshape(*hidden.shape[:-1], self.config.num_channels, self.config.vocab_size)

    def cross_angles(self, positions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """RoPE's angles in the cross-attention for positions [R, T]; only v0.1 has it there."""
        if not self.rope_in_cross_attention:
            return None
        return rope_angles(positions, self.config.cross_head_dim, self.config.rope_theta)


class DiaModel(nnx.Module):
    """Dia's encoder and decoder.

    Args:
        config: sizes and behaviour.
        dtype: compute dtype: float32, bfloat16 or float16. Norm scales are float32 whatever it is.
        rngs: for random initial weights; `nnx.eval_shape` makes the module without any.
    """

    def __init__(self, config: DiaConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config.encoder, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)

    def quantize(self) -> None:
        """Rounds every kernel to int8, in place; embeddings stay in the compute dtype."""
        for _, module in nnx.iter_modules(self):
            if isinstance(module, Linear):
                module.quantize()

    def __call__(self, text: jax.Array, tokens: jax.Array) -> jax.Array:
        """Teacher-forced logits.

        Args:
            text: int [R, S], byte tokens, 0 where padded.
            tokens: int [R, T, C], rows 0 .. T - 1 of the delayed grid.

        Returns:
            float32 [R, T, C, V]; the logits at row t are for row t + 1.
        """
        text_mask = text != 0
        cross = self.decoder.cross_cache(self.encoder(text, text_mask))
        start = jnp.zeros(tokens.shape[0], jnp.int32)
        hidden, _ = self.decoder(tokens, start, cross, text_mask)
        return self.decoder.logits(hidden)
