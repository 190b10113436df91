"""Batches on the device: an empty one, clips put in and taken out, other sizes.

Knows `decode.DecodeState`; knows no host's view of it. Every function works layer by layer with small programs: only
one layer is in memory twice, and all layers share a program.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dia_jax.config import DiaConfig, SamplingSettings
from dia_jax.decode import NOT_ENDED, DecodeState, Prefilled, Request, Slots, first_grid, grid_length
from dia_jax.mesh import split_heads
from dia_jax.ops import KV


@functools.partial(jax.jit, static_argnums=0, static_argnames=("slots", "cache", "text", "dtype"))
def empty_state(config: DiaConfig, *, slots: int, cache: int, text: int, dtype: np.dtype) -> DecodeState:
    """A batch without clips.

    Args:
        config: of the model.
        slots: clips that it can hold.
        cache: positions that its caches can hold, see `cache_size`.
        text: size of the scripts, see `text_size`.
        dtype: of the caches.
    """
    dec = config.decoder

    def caches(lanes: int, heads: int, length: int, head_dim: int) -> list[KV]:
        zeros = jnp.zeros((lanes, heads, length, head_dim), dtype)
        return [KV(zeros, zeros) for _ in range(dec.num_layers)]

    zeros, ones = jnp.zeros(slots, jnp.int32), jnp.ones(slots, jnp.float32)
    state = DecodeState(
        Slots(
            grid=jnp.zeros((slots, grid_length(config), dec.num_channels), jnp.int32),
            position=zeros,
            end=zeros,
            limit=zeros,
            done=jnp.ones(slots, bool),
            failed=jnp.zeros(slots, bool),
            key=jax.random.split(jax.random.key(0, impl="threefry2x32"), slots),
            settings=SamplingSettings(ones, ones, ones, zeros + 1),
            text_mask=jnp.zeros((slots, text), bool),
        ),
        caches(2 * slots, dec.num_kv_heads, cache, dec.head_dim),
        caches(slots, dec.cross_num_kv_heads, text, dec.cross_head_dim),
    )
    return split_heads(state)


def insert(state: DecodeState, prefilled: Prefilled, request: Request, slot: int, *, config: DiaConfig) -> DecodeState:
    """Puts a clip into a slot.

    Args:
        state: donated. Its scripts are of the size of `prefilled`; its caches may be longer, for what lies after the
            prompt is written before it is read.
        prefilled: of a request for the same script and prompt.
        request: the clip.
        slot: below B.
        config: of the model.
    """
    frames = len(request.prompt)
    kinds = SamplingSettings(np.float32, np.float32, np.float32, np.int32)
    one: dict[str, Any] = {
        "grid": first_grid(request, config)[None],
        "position": np.array([frames], np.int32),
        "end": np.array([NOT_ENDED], np.int32),
        "limit": np.array([1 + frames + request.max_frames], np.int32),
        "done": np.array([False]),
        "failed": np.array([False]),
        "key": request.key[None],
        "settings": jax.tree.map(lambda kind, value: np.array([value], kind), kinds, request.settings),
        "text_mask": prefilled.text_mask,
    }
    place = np.int32(slot)
    cache: Any = state.cache
    if frames:
        cache = [_put(layer, new, place) for layer, new in zip(cache, prefilled.cache, strict=True)]
    cross: Any = [_put(layer, new, place) for layer, new in zip(state.cross, prefilled.cross, strict=True)]
    return DecodeState(_put(state.slots, Slots(**one), place), cache, cross)


def release(state: DecodeState, slot: int) -> DecodeState:
    """Frees a slot whose clip is cancelled: no step runs for it any more."""
    slots = dataclasses.replace(state.slots, done=_put(state.slots.done, np.array([True]), np.int32(slot)))
    return dataclasses.replace(state, slots=slots)


def resize(
    state: DecodeState, slots: Sequence[int] | None = None, *, cache: int | None = None, text: int | None = None
) -> DecodeState:
    """The same clips in a batch of another size.

    Args:
        state: not to be used afterwards.
        slots: which old slot each new one takes over, -1 for none.
        cache: positions that the caches can hold afterwards, at least what the clips need.
        text: size of the scripts afterwards, at least their length.
    """
    if slots is not None:
        index, batch = np.array(slots, np.int32), len(state.slots.position)
        for layers in (state.cache, state.cross):
            for i, layer in enumerate(layers):
                layers[i] = _take(layer, index, batch)
        taken = _take(state.slots, index, batch)
        done = _free(taken.done, index)
        state = dataclasses.replace(state, slots=dataclasses.replace(taken, done=done))
    for layers, length in ((state.cache, cache), (state.cross, text)):
        if length is not None:
            for i, layer in enumerate(layers):
                layers[i] = _with_length(layer, length, axis=2)
    if text is not None:
        mask = _with_length(state.slots.text_mask, text, axis=1)
        state = dataclasses.replace(state, slots=dataclasses.replace(state.slots, text_mask=mask))
    return state


@functools.partial(jax.jit, donate_argnums=0)
def _put(everything: Any, one: Any, slot: jax.Array) -> Any:
    """Writes the arrays of one clip into those of a batch, which have one lane a clip or two."""

    def write(everything: jax.Array, one: jax.Array) -> jax.Array:
        lanes = everything.reshape(len(one), -1, *everything.shape[1:])
        return jax.lax.dynamic_update_slice_in_dim(lanes, one[:, None], slot, axis=1).reshape(everything.shape)

    return split_heads(jax.tree.map(write, everything, one))


@functools.partial(jax.jit, static_argnums=2)
def _take(everything: Any, slots: jax.Array, batch: int) -> Any:
    """The clips of some slots; an arbitrary one for a negative slot."""
    slots = jnp.maximum(slots, 0)

    def take(x: jax.Array) -> jax.Array:
        return x.reshape(-1, batch, *x.shape[1:])[:, slots].reshape(-1, *x.shape[1:])

    return split_heads(jax.tree.map(take, everything))


@jax.jit
def _free(done: jax.Array, slots: jax.Array) -> jax.Array:
    return done | (slots < 0)


@functools.partial(jax.jit, static_argnums=1, static_argnames="axis")
def _with_length(arrays: Any, length: int, *, axis: int) -> Any:
    def change(x: jax.Array) -> jax.Array:
        x = jax.lax.slice_in_dim(x, 0, min(length, x.shape[axis]), axis=axis)
        return jnp.pad(x, [(0, length - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    return split_heads(jax.tree.map(change, arrays))
