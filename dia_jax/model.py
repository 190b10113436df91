"""Dia's network: a byte-text encoder and an audio decoder over nine delayed channels, as Flax NNX modules.

Knows weights and pure calls. Key/value caches come in as arguments and go out as results. Sampling, the delay pattern
and file I/O live elsewhere; how attention and products run on each backend is in `ops.py`. The modules' paths are the
reference's names (encoder.layers.0.self_attention.q_proj).

Dimensions:
    R lanes of a batch (two for each clip while decoding: first all unconditional ones, then the conditional)
    T decoder time   S key positions (bytes of text, or positions of the cache)
    C channels       V vocabulary of a channel
    D model          F mlp
    N query heads    K key/value heads    H head_dim

Numerics: kernels and caches are in the compute dtype; norms, RoPE, softmax, the residual stream and the logits are in
float32, and every product accumulates in float32. Attention is not scaled (factor 1.0), so its scores are large and
lose too much precision in 16 bits. Kernels may be int8 instead, with a scale for each output.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from dia_jax.compat import ModuleList
from dia_jax.config import DecoderConfig, DiaConfig, EncoderConfig
from dia_jax.mesh import replicate
from dia_jax.ops import KV, apply_rope, attend, attend_with_cache, causal_mask, product, quantize_kernel, rope_angles

Quantize = Literal["int8"]
"""How kernels may be stored in fewer bits: "int8", one scale for each output. Embeddings and norms stay as they are."""

Angles = tuple[jax.Array, jax.Array]
"""What `rope_angles` gives."""

_kernel_init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2)
_embedding_init = jax.nn.initializers.normal(1.0)


class Linear(nnx.Module):
    """A product with a kernel [*out, in], without bias; float32 [..., in] -> float32 [..., *out].

    Not `nnx.Linear`: the kernel is [out, in], which is the order at which the CPU backend is fast, the result is
    float32 whatever the compute dtype, and after `quantize` the kernel is int8 with a float32 scale for each output.
    """

    def __init__(self, in_size: int, out_size: int | tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        out = (out_size,) if isinstance(out_size, int) else out_size
        self.weight = nnx.Param(_kernel_init(rngs.params(), (*out, in_size), dtype))
        self.scale: nnx.Param | None = nnx.data(None)

    def quantize(self) -> None:
        """Rounds the kernel to int8."""
        weight, scale = quantize_kernel(self.weight[...])
        self.weight, self.scale = nnx.Param(weight), nnx.Param(scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = None if self.scale is None else self.scale[...]
        out = product(x.reshape(-1, x.shape[-1]), self.weight[...], scale, self.dtype)
        return out.reshape(*x.shape[:-1], *out.shape[1:])


def _embed(vocab_size: int, size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Embed:
    # In the dtype of its table, or the whole table would be converted before the lookup.
    return nnx.Embed(vocab_size, size, dtype=dtype, param_dtype=dtype, embedding_init=_embedding_init, rngs=rngs)


class RMSNorm(nnx.Module):
    """Root mean square norm (Zhang and Sennrich, 2019), float32 [..., D] in and out."""

    def __init__(self, size: int, *, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        mean = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        # Multiplied in this order XLA makes one kernel of it on a GPU; `nnx.RMSNorm` multiplies the scale first.
        return x * jax.lax.rsqrt(mean + self.epsilon) * self.scale[...]


def _norm(config: EncoderConfig | DecoderConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, epsilon=config.norm_eps)


class Mlp(nnx.Module):
    """SwiGLU: wo(silu(gate) * up). Gate and up have an axis of their own in the kernel [2, F, D], so that F can be
    split over devices without separating the two."""

    def __init__(self, size: int, mlp_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.wi_fused = Linear(size, (2, mlp_size), dtype=dtype, rngs=rngs)
        self.wo = Linear(mlp_size, size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        both = self.wi_fused(x)  # [..., 2, F]
        return self.wo(jax.nn.silu(both[..., 0, :]) * both[..., 1, :])


class Attention(nnx.Module):
    """The four projections of an attention layer; the layer decides what attends to what."""

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

    def queries(self, x: jax.Array, angles: Angles | None) -> jax.Array:
        """float32 [R, T, D] -> float32 [R, T, N, H], rotated if angles are given."""
        q = self._heads(self.q_proj(x))
        return q if angles is None else apply_rope(q, angles)

    def keys_values(self, x: jax.Array, angles: Angles | None) -> KV:
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
        self.pre_sa_norm = _norm(config)
        self.self_attention = Attention(
            size, size, config.num_heads, config.num_kv_heads, config.head_dim, dtype=dtype, rngs=rngs
        )
        self.post_sa_norm = _norm(config)
        self.mlp = Mlp(size, config.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, angles: Angles, mask: jax.Array) -> jax.Array:
        attention = self.self_attention
        h = self.pre_sa_norm(x)
        x = x + attention.o_proj(attend(attention.queries(h, angles), (attention.keys_values(h, angles), mask)))
        return x + self.mlp(self.post_sa_norm(x))


class Encoder(nnx.Module):
    """Bidirectional over the bytes of a script. Padding is masked as a key, and its outputs are never read."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.embedding = _embed(config.vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = ModuleList([EncoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = _norm(config)

    def embed(self, text: jax.Array) -> jax.Array:
        """int [R, S] -> float32 [R, S, D]."""
        return self.embedding(text).astype(jnp.float32)

    def __call__(self, text: jax.Array, text_mask: jax.Array) -> jax.Array:
        """int [R, S] and bool [R, S] (False where padded) -> float32 [R, S, D]."""
        x = replicate(self.embed(text))
        angles = rope_angles(jnp.arange(text.shape[1])[None], self.config.head_dim, self.config.rope_theta)
        for layer in self.layers:
            x = layer(x, angles, text_mask[:, None, :])
        return self.norm(x)


class DecoderLayer(nnx.Module):
    def __init__(self, config: DiaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        dec = config.decoder
        size = dec.hidden_size
        self.pre_sa_norm = _norm(dec)
        self.self_attention = Attention(
            size, size, dec.num_heads, dec.num_kv_heads, dec.head_dim, dtype=dtype, rngs=rngs
        )
        self.pre_ca_norm = _norm(dec)
        self.cross_attention = Attention(
            size,
            config.encoder.hidden_size,
            dec.cross_num_heads,
            dec.cross_num_kv_heads,
            dec.cross_head_dim,
            dtype=dtype,
            rngs=rngs,
        )
        self.pre_mlp_norm = _norm(dec)
        self.mlp = Mlp(size, dec.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        angles: Angles,
        cross_angles: Angles | None,
        cross: tuple[KV, jax.Array],
        cache: KV | None,
        start: jax.Array,
        unconditional: jax.Array | None = None,
    ) -> tuple[jax.Array, KV]:
        """See `Decoder.__call__`; `cross` holds the layer's keys and values with their mask."""
        out, kv = self.attend_self(x, angles, cache, start)
        x = x + out
        x = x + self.attend_cross(x, cross_angles, cross, unconditional)
        return x + self.mlp(self.pre_mlp_norm(x)), kv

    def attend_self(self, x: jax.Array, angles: Angles, cache: KV | None, start: jax.Array) -> tuple[jax.Array, KV]:
        """Self-attention; gives the cache with the new keys and values, or these alone where there is no cache."""
        attention = self.self_attention
        h = self.pre_sa_norm(x)
        q, kv = attention.queries(h, angles), attention.keys_values(h, angles)
        if cache is None:
            out = attend(q, (kv, causal_mask(x.shape[1])))
        else:
            out, kv = attend_with_cache(q, cache, kv, start)
        return attention.o_proj(out), kv

    def attend_cross(
        self, x: jax.Array, angles: Angles | None, cross: tuple[KV, jax.Array], unconditional: jax.Array | None = None
    ) -> jax.Array:
        """Cross-attention, float32 [R, T, D] in and out; with `unconditional`, that is the first half's."""
        if unconditional is None:
            return self.cross_attention.o_proj(attend(self.cross_queries(x, angles), cross))
        out = self.cross_attention.o_proj(attend(self.cross_queries(x, angles, len(x) // 2), cross))
        # A choice between two broadcasts is part of the kernel that follows it; on a GPU a concatenation is one more.
        has_script = jnp.arange(2)[:, None, None, None] == 1
        return jnp.where(has_script, out, unconditional).reshape(x.shape)

    def cross_queries(self, x: jax.Array, angles: Angles | None, first: int = 0) -> jax.Array:
        """Cross-attention queries, float32 [R, T, N, H], from the stream after self-attention; from lane `first` on."""
        # All lanes are normed: of a single row XLA would make two kernels on a GPU.
        return self.cross_attention.queries(self.pre_ca_norm(x)[first:], angles)


class Decoder(nnx.Module):
    """Causal over the positions of the delayed grid, cross-attending to the encoded script."""

    def __init__(self, config: DiaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        dec = config.decoder
        self.config: DecoderConfig = dec
        self.rope_in_cross_attention = config.variant == "v0.1"
        # One table for all channels, channel c's ids at c * V: nine lookups in one gather.
        self.embeddings = _embed(dec.num_channels * dec.vocab_size, dec.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = ModuleList([DecoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(dec.num_layers)])
        self.norm = _norm(dec)
        self.logits_dense = Linear(dec.hidden_size, dec.num_channels * dec.vocab_size, dtype=dtype, rngs=rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [R, T, C] -> float32 [R, T, D], the sum over the channels."""
        offsets = jnp.arange(self.config.num_channels) * self.config.vocab_size
        return self.embeddings(tokens + offsets).astype(jnp.float32).sum(axis=-2)

    def cross_cache(self, encoded: jax.Array) -> list[KV]:
        """The cross-attention's keys and values of every layer, from the encoder's output float32 [R, S, D]."""
        angles = self.cross_angles(jnp.arange(encoded.shape[1])[None])
        return [layer.cross_attention.keys_values(encoded, angles) for layer in self.layers]

    def without_script(self, encoded: jax.Array) -> list[jax.Array]:
        """What the cross-attention of each layer adds to a lane whose script is empty, float32 [D].

        An empty script is zeros, so the encoder gives the same vector at every position, and these have the same
        values. A weighted mean of equal values is that value, whatever the query and with RoPE or without.

        Args:
            encoded: float32 [1, 1, D], the encoder's output for a single zero.
        """
        any_query, sees_it = jnp.zeros((1, 1, self.config.hidden_size)), jnp.ones((1, 1, 1), bool)
        pairs = zip(self.layers, self.cross_cache(encoded), strict=True)
        return [layer.attend_cross(any_query, None, (kv, sees_it))[0, 0] for layer, kv in pairs]

    def empty_cache(self, lanes: int, length: int) -> list[KV]:
        """Self-attention caches of zeros, one for each layer, with room for `length` positions."""
        dec = self.config
        zeros = jnp.zeros((lanes, dec.num_kv_heads, length, dec.head_dim), self.logits_dense.dtype)
        return [KV(k=zeros, v=zeros) for _ in self.layers]

    def __call__(
        self,
        tokens: jax.Array,
        start: jax.Array,
        cross: list[KV],
        text_mask: jax.Array,
        cache: list[KV] | None = None,
        *,
        unconditional: list[jax.Array] | None = None,
    ) -> tuple[jax.Array, list[KV]]:
        """Runs positions start[r] .. start[r] + T - 1 of the grid.

        Args:
            tokens: int [R, T, C]; [R / 2, T, C] with `unconditional`.
            start: int [R] or [R / 2] likewise, the position of each lane's first token.
            cross: from `cross_cache`.
            text_mask: bool [R, S_text], False where the script is padded.
            cache: keys and values of the positions before, [R, K, S, H] for each layer, S >= start + T; without it the
                call attends to its own positions alone.
            unconditional: from `without_script`. Each row of `tokens`, `start`, `cross` and `text_mask` then has two
                lanes: the first half of the lanes, without a script, and the second half, with it.

        Returns:
            float32 [R, T, D], normed, ready for `logits`; and the caches with the new positions written in.
        """
        positions = start[:, None] + jnp.arange(tokens.shape[1])  # [R, T]
        cross_angles = self.cross_angles(positions)
        # Without this, XLA would split the residual stream, and gather it before each product.
        x = replicate(self.embed(tokens))
        if unconditional is not None:
            x, start, positions = (jnp.concatenate([each, each]) for each in (x, start, positions))
        angles = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        new_cache = []
        for i, layer in enumerate(self.layers):
            before = None if cache is None else cache[i]
            constant = None if unconditional is None else unconditional[i]
            x, kv = layer(x, angles, cross_angles, (cross[i], text_mask[:, None]), before, start, constant)
            new_cache.append(kv)
        return self.norm(x), new_cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [R, T, D] -> float32 [R, T, C, V]."""
        # After the barrier XLA reshapes the logits; without it, a TPU's compiler reshapes the kernel on every step.
        logits = jax.lax.optimization_barrier(self.logits_dense(hidden))
        return logits.reshape(*hidden.shape[:-1], self.config.num_channels, self.config.vocab_size)

    def cross_angles(self, positions: jax.Array) -> Angles | None:
        """RoPE's angles in the cross-attention for positions [R, T]; only v0.1 has it there."""
        if not self.rope_in_cross_attention:
            return None
        return rope_angles(positions, self.config.cross_head_dim, self.config.rope_theta)


class DiaModel(nnx.Module):
    """Dia's encoder and decoder.

    Args:
        config: sizes and behaviour.
        dtype: compute dtype: float32, bfloat16 or float16. Norm scales are float32 in every case.
        rngs: for random initial weights; `nnx.eval_shape` makes the module without any.
    """

    def __init__(self, config: DiaConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config.encoder, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)

    def quantize(self) -> None:
        """Rounds every kernel to int8, in place; embeddings stay in the compute dtype."""
        for _, module in nnx.iter_graph(self):
            if isinstance(module, Linear):
                module.quantize()

    def unconditional(self) -> list[jax.Array]:
        """`Decoder.without_script` for this model; a constant of its weights."""
        return self.decoder.without_script(self.encoder(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)))

    def __call__(self, text: jax.Array, tokens: jax.Array) -> jax.Array:
        """Teacher-forced logits.

        Args:
            text: int [R, S], byte tokens, 0 where padded.
            tokens: int [R, T, C], positions 0 .. T - 1 of the delayed grid.

        Returns:
            float32 [R, T, C, V]; the logits at position t are for position t + 1.
        """
        text_mask = text != 0
        cross = self.decoder.cross_cache(self.encoder(text, text_mask))
        start = jnp.zeros(tokens.shape[0], jnp.int32)
        hidden, _ = self.decoder(tokens, start, cross, text_mask)
        return self.decoder.logits(hidden)
