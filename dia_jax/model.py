"""Dia's network: a byte-text encoder and an audio decoder over nine delayed channels, as Flax NNX modules.

Knows weights and pure calls. Key/value caches come in as arguments and go out as results; sampling, the delay pattern
and files are other rooms. The parameters' paths are the reference's names
(encoder.layers.0.self_attention.q_proj.weight); every kernel is stored as [in, out], heads flattened.

Dimensions:
    B clips          R rows of a batch (two a clip while decoding: unconditional, conditional)
    T decoder time   S key time (text, or rows of the cache)
    C channels       V vocabulary of a channel
    D model          F mlp
    N query heads    K key/value heads    G = N / K    H head_dim

Numerics: kernels and caches are in the compute dtype; norms, RoPE, softmax, the residual stream and the logits are in
float32, and every product accumulates in float32. Attention is not scaled (factor 1.0), so its scores are large and do
not bear 16 bits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dia_jax.config import DecoderConfig, DiaConfig, EncoderConfig


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


def attend(q: jax.Array, kv: KV, mask: jax.Array) -> jax.Array:
    """Attention with factor 1.0; query head h uses key/value head h // G.

    Args:
        q: float32 [R, T, N, H].
        kv: keys and values [R, K, S, H].
        mask: bool [R, T, S] or anything that broadcasts to it; False hides a key.

    Returns:
        float32 [R, T, N * H].
    """
    rows, time, heads, head_dim = q.shape
    dtype, precision = kv.k.dtype, _precision(kv.k.dtype)
    # Batch, rows, columns in this order on both sides: XLA's CPU backend has no 16-bit product with a transposed
    # result.
    q = q.astype(dtype).reshape(rows, time, kv.k.shape[1], -1, head_dim).transpose(0, 2, 3, 1, 4)  # [R, K, G, T, H]
    scores = jnp.einsum("RKGTH,RKSH->RKGTS", q, kv.k, precision=precision, preferred_element_type=jnp.float32)
    # A finite floor, so that a row with nothing to see (padding) yields numbers that are thrown away, not NaN.
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
    out = jnp.einsum("RKGTS,RKSH->RKGTH", weights, kv.v, precision=precision, preferred_element_type=jnp.float32)
    return out.transpose(0, 3, 1, 2, 4).reshape(rows, time, heads * head_dim)


class Linear(nnx.Module):
    """A product with a kernel [in, out], without bias; takes the kernel's dtype, gives float32."""

    def __init__(self, in_size: int, out_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        self.weight = nnx.Param(init(rngs.params(), (in_size, out_size), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.weight[...]
        return jnp.dot(
            x.astype(weight.dtype), weight, precision=_precision(weight.dtype), preferred_element_type=jnp.float32
        )


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
        dtype = self.k_proj.weight.dtype
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
        x = x + attention.o_proj(attend(attention.queries(h, angles), attention.keys_values(h, angles), mask))
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
        cross: KV,
        text_mask: jax.Array,
        mask: jax.Array,
        cache: KV | None,
        start: jax.Array,
    ) -> tuple[jax.Array, KV]:
        attention = self.self_attention
        h = self.pre_sa_norm(x)
        kv = attention.keys_values(h, angles)
        if cache is not None:
            kv = KV(k=_write_rows(cache.k, kv.k, start), v=_write_rows(cache.v, kv.v, start))
        x = x + attention.o_proj(attend(attention.queries(h, angles), kv, mask))

        attention = self.cross_attention
        q = attention.queries(self.pre_ca_norm(x), cross_angles)
        x = x + attention.o_proj(attend(q, cross, text_mask[:, None, :]))
        return x + self.mlp(self.pre_mlp_norm(x)), kv


def _write_rows(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Puts new [R, K, T, H] into cache [R, K, S, H] at rows start[r] .. start[r] + T - 1."""
    # One update a row: as one vmapped update it would be a scatter, which TPUs run as a loop over a copy of the cache.
    for row in range(cache.shape[0]):
        cache = jax.lax.dynamic_update_slice(cache, new[row : row + 1], (row, 0, start[row], 0))
    return cache


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

    def cross_cache(self, encoded: jax.Array) -> list[KV]:
        """The cross-attention's keys and values of every layer, from the encoder's output float32 [R, S, D]."""
        angles = self._cross_angles(jnp.arange(encoded.shape[1])[None])
        return [layer.cross_attention.keys_values(encoded, angles) for layer in self.layers]

    def empty_cache(self, rows: int, length: int) -> list[KV]:
        """Self-attention caches of zeros, one a layer, for `rows` rows of the batch and `length` rows of the grid."""
        dec = self.config
        zeros = jnp.zeros((rows, dec.num_kv_heads, length, dec.head_dim), self.logits_dense.weight.dtype)
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
        dec = self.config
        positions = start[:, None] + jnp.arange(tokens.shape[1])  # [R, T]
        offsets = jnp.arange(dec.num_channels) * dec.vocab_size
        x = self.embeddings(tokens + offsets).sum(axis=-2)
        angles = rope_angles(positions, dec.head_dim, dec.rope_theta)
        cross_angles = self._cross_angles(positions)
        keys = positions if cache is None else jnp.arange(cache[0].k.shape[2])[None]
        mask = keys[:, None, :] <= positions[:, :, None]
        new_cache = []
        for i, layer in enumerate(self.layers):
            x, kv = layer(
                x, angles, cross_angles, cross[i], text_mask, mask, None if cache is None else cache[i], start
            )
            new_cache.append(kv)
        return self.norm(x), new_cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [R, T, D] -> float32 [R, T, C, V]."""
        return self.logits_dense(hidden).reshape(*hidden.shape[:-1], self.config.num_channels, self.config.vocab_size)

    def _cross_angles(self, positions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
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
