"""From the logits of one position to its tokens: guidance, top-k filter, EOS rule, temperature, top-p, draw.

Pure functions of one clip, for `jax.vmap` to spread over a batch. Every setting is traced, so none recompiles, and the
clips of a batch may differ in them. Knows nothing of time: which tokens are given, and when a clip ends, is up to the
decode loop.
"""

import jax
import jax.numpy as jnp

from dia_jax.config import SamplingSettings, Scalar, Variant

jax.tree_util.register_dataclass(SamplingSettings)


def candidate_logits(
    uncond: jax.Array, cond: jax.Array, settings: SamplingSettings, *, eos_token_id: int, variant: Variant
) -> jax.Array:
    """The logits whose softmax the tokens of a position are drawn from; -inf for all that is no candidate.

    Args:
        uncond, cond: float32 [C, V], without and with the script.
        settings: see `SamplingSettings`; a temperature of 0 counts as 1 here.
        eos_token_id: the ids below it are codes.
        variant: see `DiaConfig.variant`.

    Returns:
        float32 [C, V]. Tokens tied at the edge of top-k or top-p are kept together.
    """
    guided = cond + settings.cfg_scale * (cond - uncond)
    ids = jnp.arange(cond.shape[-1])
    channels = jnp.arange(cond.shape[0])[:, None]
    # Only channel 0 may end a clip, and ids above EOS are never drawn.
    allowed = (ids < eos_token_id) | ((ids == eos_token_id) & (channels == 0))
    # Not a plain broadcast, or XLA would multiply by the rounded reciprocal, and large logits be off by one ulp.
    temperature = jnp.where(allowed & (settings.temperature > 0), settings.temperature, 1.0)

    if variant == "0626":
        logits = jnp.where(_is_top_k(guided, settings.cfg_filter_top_k) & allowed, cond, -jnp.inf) / temperature
    else:
        guided = jnp.where(ids == eos_token_id, guided * 0.8, guided)
        logits = jnp.where(allowed, guided, -jnp.inf) / temperature

    # EOS is drawn when it is the likeliest token, never by chance.
    eos_is_best = jnp.argmax(logits, axis=-1, keepdims=True) == eos_token_id
    logits = jnp.where((ids == eos_token_id) & ~eos_is_best, -jnp.inf, logits)
    if variant == "0626":
        logits = jnp.where((ids != eos_token_id) & eos_is_best, -jnp.inf, logits)
    else:
        logits = jnp.where(_is_top_k(logits, settings.cfg_filter_top_k), logits, -jnp.inf)
    return jnp.where(_is_top_p(logits, settings.top_p), logits, -jnp.inf)


def sample(
    uncond: jax.Array,
    cond: jax.Array,
    key: jax.Array,
    settings: SamplingSettings,
    *,
    eos_token_id: int,
    variant: Variant,
) -> jax.Array:
    """Draws the tokens of one position, int32 [C], from logits float32 [C, V]; the likeliest at a temperature of 0.

    A channel that is left without any candidate (a tiny `cfg_filter_top_k` whose picks are all special tokens) gives 0.
    """
    logits = candidate_logits(uncond, cond, settings, eos_token_id=eos_token_id, variant=variant)
    noise = jnp.where(settings.temperature > 0, jax.random.gumbel(key, logits.shape), 0.0)
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def _ascending(x: jax.Array) -> jax.Array:
    """float32 [C, V] sorted along the last axis, without NaN.

    Sorted as integers of the same order: XLA's CPU backend sorts integers six times as fast as floats, and the two
    sorts of a step would otherwise be most of the time of a small model's.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    flip = jnp.int32(0x7FFFFFFF)  # turns the order of negative floats around
    order = jnp.sort(jnp.where(bits < 0, bits ^ flip, bits), axis=-1)
    return jax.lax.bitcast_convert_type(jnp.where(order < 0, order ^ flip, order), jnp.float32)


def _is_top_k(logits: jax.Array, k: Scalar) -> jax.Array:
    # A sort and a threshold: lax.top_k would need k at compile time.
    size = logits.shape[-1]
    threshold = jnp.take(_ascending(logits), size - jnp.clip(k, 1, size), axis=-1)[:, None]
    return logits >= threshold


def _is_top_p(logits: jax.Array, top_p: Scalar) -> jax.Array:
    probs = jax.nn.softmax(logits, axis=-1)
    probs = jnp.where(jnp.isnan(probs), 0.0, probs)  # no candidate at all
    descending = _ascending(probs)[:, ::-1]
    before = jnp.pad(jnp.cumsum(descending, axis=-1)[:, :-1], ((0, 0), (1, 0)))
    # The token that crosses top_p is kept: what counts is the probability of those before it.
    threshold = jnp.min(jnp.where(before <= top_p, descending, jnp.inf), axis=-1, keepdims=True)
    return (probs >= threshold) | (top_p >= 1.0)
