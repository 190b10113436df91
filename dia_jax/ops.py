"""Attention, cache writes, RoPE and products, with the variant that each backend runs fastest.

Knows arrays and backends. Knows no modules, no config and no loop. `model.py` composes these; a reader who takes the
formulas for granted can skip this file.

Dimensions:
    R lanes of a batch (two for each clip while decoding)
    T decoder time   S key positions
    N query heads    K key/value heads    G = N / K    H head_dim

Numerics: keys, values and kernels are in the compute dtype. RoPE, softmax and every accumulation are in float32.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MANY_ROWS = 512
"""From this many inputs on, a product belongs to training or to a long prompt; see `_product_on_cpu`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KV:
    """Keys and values of one attention layer, RoPE applied: arrays [R, K, S, H] in the compute dtype."""

    k: jax.Array
    v: jax.Array


# --- RoPE ------------------------------------------------------------------------------------------------------------


def rope_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of RoPE (Su et al., 2021): angle = position / theta^(2i / head_dim).

    Args:
        positions: int array [R, T] or [1, T].
        head_dim: H, even.
        theta: base of the frequencies.

    Returns:
        Two float32 arrays [R, T, 1, H / 2].
    """
    # The powers are computed in float64 and rounded once: in float32 they would depend on the platform's pow, and the
    # position multiplies the error.
    frequencies = np.float32(1.0) / np.power(theta, np.arange(0, head_dim, 2) / head_dim).astype(np.float32)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the first half of each head against its second half; float32 [R, T, N, H] in and out."""
    cos, sin = angles
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


# --- Attention -------------------------------------------------------------------------------------------------------


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """What a product needs so that float32 means float32: TPUs would use bfloat16 passes, and GPUs TF32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """[R, K, G, T, H] and [R, K, S, H] of one dtype -> float32 [R, K, G, T, S]."""
    return jnp.einsum("RKGTH,RKSH->RKGTS", q, k, precision=precision(k.dtype), preferred_element_type=jnp.float32)


def _scores_on_cpu(q: jax.Array, k: jax.Array) -> jax.Array:
    """`_scores` with the keys on the left, as in `_product_on_cpu`; XLA has no such product in 16 bits."""
    if jnp.dtype(k.dtype).itemsize == 2:
        # The queries of a group as one dimension: in the other form, jax 0.7 fails in bfloat16 on some CPUs.
        lanes, heads, *queries, head_dim = q.shape
        rows = q.reshape(lanes, heads, -1, head_dim)
        scores = jnp.einsum("RKMH,RKSH->RKMS", rows, k, preferred_element_type=jnp.float32)
        return scores.reshape(lanes, heads, *queries, -1)
    scores = jnp.einsum("RKSH,RKGTH->RKSGT", k, q, precision=precision(k.dtype), preferred_element_type=jnp.float32)
    return jnp.moveaxis(jax.lax.optimization_barrier(scores), 2, -1)


def attend(q: jax.Array, *parts: tuple[KV, jax.Array]) -> jax.Array:
    """Attention with factor 1.0 over the keys of all parts together; query head h uses key/value head h // G.

    Args:
        q: float32 [R, T, N, H].
        parts: keys and values [R, K, S, H], each with a mask that broadcasts to bool [R, T, S]; False hides a key.

    Returns:
        float32 [R, T, N * H].
    """
    lanes, time, heads, head_dim = q.shape
    dtype, kv_heads = parts[0][0].k.dtype, parts[0][0].k.shape[1]
    q = q.astype(dtype).reshape(lanes, time, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    # A finite floor, so that a query with nothing to see (padding) yields numbers that are thrown away, not NaN.
    floor = jnp.finfo(jnp.float32).min
    scores = [
        jnp.where(mask[:, None, None], jax.lax.platform_dependent(q, kv.k, cpu=_scores_on_cpu, default=_scores), floor)
        for kv, mask in parts
    ]
    highest = functools.reduce(jnp.maximum, [part.max(axis=-1, keepdims=True) for part in scores])
    weights = [jnp.exp(part - highest) for part in scores]
    add = functools.partial(functools.reduce, jnp.add)
    total = add([part.sum(axis=-1, keepdims=True) for part in weights])
    mix = functools.partial(
        jnp.einsum, "RKGTS,RKSH->RKGTH", precision=precision(dtype), preferred_element_type=jnp.float32
    )
    out = add([mix((part / total).astype(dtype), kv.v) for part, (kv, _) in zip(weights, parts, strict=True)])
    return out.transpose(0, 3, 1, 2, 4).reshape(lanes, time, heads * head_dim)


def causal_mask(time: int) -> jax.Array:
    """bool [1, T, T]."""
    return jnp.tril(jnp.ones((1, time, time), bool))


def attend_with_cache(q: jax.Array, cache: KV, new: KV, start: jax.Array) -> tuple[jax.Array, KV]:
    """Causal attention to the cached positions before `start` and to the new ones, which are written into the cache.

    Args:
        q: float32 [R, T, N, H].
        cache: keys and values of the positions before, [R, K, S, H], S >= start + T.
        new: [R, K, T, H].
        start: int [R], the position of the first new key of each lane.

    Returns:
        float32 [R, T, N * H]; and the cache with the new keys and values at start[r] .. start[r] + T - 1.
    """
    return jax.lax.platform_dependent(
        q,
        cache,
        new,
        start,
        cpu=functools.partial(_write_then_attend, write=_write_by_lane),
        cuda=functools.partial(_write_then_attend, write=_write_by_scatter),
        default=functools.partial(_attend_then_write, write=_write_by_lane),
    )


Write = Callable[[KV, KV, jax.Array], KV]


def _attend_then_write(q: jax.Array, cache: KV, new: KV, start: jax.Array, *, write: Write) -> tuple[jax.Array, KV]:
    # Nothing in the call reads what is written, so the write is in place. If attention read the updated cache, a TPU
    # would update it in its fast memory and copy all of it back: a quarter more bytes at 16 clips.
    before = jnp.arange(cache.k.shape[2]) < start[:, None]
    out = attend(q, (cache, before[:, None]), (new, causal_mask(q.shape[1])))
    # The write waits for the attention, for the same reason: otherwise it may hit the copy that attention reads.
    out, new = jax.lax.optimization_barrier((out, new))
    return out, write(cache, new, start)


def _write_then_attend(q: jax.Array, cache: KV, new: KV, start: jax.Array, *, write: Write) -> tuple[jax.Array, KV]:
    # XLA's CPU backend does not order the read before the write, and would copy the cache to be safe. On a GPU, scores
    # in one part make the softmax one kernel.
    cache = write(cache, new, start)
    positions = start[:, None] + jnp.arange(q.shape[1])  # [R, T]
    return attend(q, (cache, jnp.arange(cache.k.shape[2]) <= positions[..., None])), cache


def _write_by_lane(cache: KV, new: KV, start: jax.Array) -> KV:
    """One update a lane: a vmapped update would be a scatter, which TPUs run as a loop over a copy of the cache."""

    def write(cache: jax.Array, new: jax.Array) -> jax.Array:
        # A TPU pads [K, 1, H] to many times its size, and each slice would read all of it.
        flat = jax.lax.optimization_barrier(new.reshape(len(new), -1))
        for lane in range(cache.shape[0]):
            cache = jax.lax.dynamic_update_slice(
                cache, flat[lane].reshape(1, *new.shape[1:]), (lane, 0, start[lane], 0)
            )
        return cache

    return jax.tree.map(write, cache, new)


def _write_by_scatter(cache: KV, new: KV, start: jax.Array) -> KV:
    """One scatter for all lanes: on a GPU each update of `_write_by_lane` is a kernel launch, 1,152 at 16 clips."""

    def write(cache: jax.Array, new: jax.Array) -> jax.Array:
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
        return jax.vmap(update)(cache, new, start)

    return jax.tree.map(write, cache, new)


# --- Products --------------------------------------------------------------------------------------------------------


def product(x: jax.Array, weight: jax.Array, scale: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    """x times the transpose of a kernel, accumulated in float32.

    Args:
        x: float32 [M, in].
        weight: [*out, in], in `dtype`, or int8 with a scale.
        scale: None, or float32 [*out], by which an int8 kernel is multiplied.
        dtype: the compute dtype.

    Returns:
        float32 [M, *out].
    """
    if scale is None:
        return jax.lax.platform_dependent(x.astype(dtype), weight, cpu=_product_on_cpu, default=_product)
    # Where the backend converts the kernel on its way into the product, only int8 crosses the memory bus. XLA's CPU
    # backend would write the converted kernel to memory first, so there the inputs become int8 instead.
    return scale * jax.lax.platform_dependent(
        x,
        weight,
        cpu=_int8_product,
        default=lambda x, weight: _product(x.astype(dtype), weight.astype(dtype)),
    )


def _dot(left: jax.Array, right: jax.Array, out_dtype: jnp.dtype) -> jax.Array:
    """[*a, in] and [*b, in] -> [*a, *b]."""
    contract = (((left.ndim - 1,), (right.ndim - 1,)), ((), ()))
    return jax.lax.dot_general(left, right, contract, precision=precision(left.dtype), preferred_element_type=out_dtype)


def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """[M, in] and [*out, in] of one dtype -> float32 [M, *out]."""
    return _dot(x, weight, jnp.float32)


def _product_on_cpu(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`_product` with the operands in the order at which XLA's CPU backend is fast.

    It packs the right operand again on every call: with the kernel there, the few inputs of a decode step take two and
    a half times as long in float32 and a quarter longer in int8. In 16 bits it is the other way round. With many inputs
    the transpose afterwards costs more than this saves: the gradients of a small model take a sixth longer.
    """
    if jnp.dtype(x.dtype).itemsize == 2 and len(x) == 1:
        # The library that multiplies 16-bit numbers takes two rows or more; XLA's own loop takes ten times as long.
        return _product(jnp.concatenate([x, x]), weight)[:1]
    if jnp.dtype(x.dtype).itemsize == 2 or (x.dtype == jnp.float32 and len(x) >= MANY_ROWS):
        return _product(x, weight)
    out = _dot(weight, x, jnp.int32 if x.dtype == jnp.int8 else jnp.float32)
    # The barrier keeps XLA from seeing that a transposed product is the product of the swapped operands.
    return jnp.moveaxis(jax.lax.optimization_barrier(out), -1, 0).astype(jnp.float32)


def _int8_product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """float32 [M, in] and int8 [*out, in] -> float32 [M, *out] by products of int8 alone.

    An input is written as step * (high + low / 254), two vectors of int8, where step is its largest magnitude / 127: an
    error of at most step / 508 an element. The kernel is read once for both.
    """
    step = jnp.maximum(jnp.max(jnp.abs(x), axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny) / 127
    scaled = x / step
    high = jnp.round(scaled)
    low = jnp.round((scaled - high) * 254)
    both = _product_on_cpu(jnp.concatenate([high, low]).astype(jnp.int8), weight)
    high, low = jnp.split(both, 2)
    return (high + low / 254) * step.reshape(-1, *[1] * (weight.ndim - 1))


def quantize_kernel(weight: jax.Array | np.ndarray) -> tuple[Any, Any]:
    """Rounds a kernel [*out, in] to int8, symmetric, with one scale for each output: weight ~ scale * kernel.

    Returns:
        int8 [*out, in] in -127 .. 127 and float32 [*out], of the kind of array that went in.
    """
    numbers = np if isinstance(weight, np.ndarray) else jnp
    weight = weight.astype(np.float32)
    scale = numbers.maximum(numbers.abs(weight).max(axis=-1), np.finfo(np.float32).tiny) / np.float32(127)
    return numbers.round(weight / scale[..., None]).astype(np.int8), scale
