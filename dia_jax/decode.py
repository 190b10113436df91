"""The compiled half of decoding: `prefill` reads a script, and `decode_chunk` advances a batch.

Knows the model, the grid and the end of a clip. Knows no text, files, audio or threads: `slots.py` moves clips in and
out of a batch, and `loop.py` decides which clip is decoded when. Nothing crosses to the host inside `decode_chunk`.
The settings of each clip and the number of steps are traced, so each program compiles once for each shape: that of
`decode_chunk` depends on the number of slots, the size of the caches and the size of the scripts.

Each clip has its own position in the grid and its own key, so its codes do not depend on its neighbours, on padding, or
on how many steps a call runs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dia_jax.config import DiaConfig, SamplingSettings
from dia_jax.delay import FREE, apply_delay, revert_delay
from dia_jax.mesh import split_heads
from dia_jax.model import DiaModel
from dia_jax.ops import KV
from dia_jax.sampling import sample

PREFILL_SIZE = 256
"""Positions of a voice prompt that one pass of the prefill takes: bounds its memory. Caches are multiples of it."""

FIRST_SIZE = 512
"""Positions of a new cache, 6 s. All 3,072 at 16 clips would be over half of a step's bytes."""

FIRST_TEXT_SIZE = 128

NOT_ENDED = np.iinfo(np.int32).max // 2


@dataclasses.dataclass(frozen=True)
class Request:
    """What one clip starts from, on the host. `requests.py` checks what goes in.

    Attributes:
        text: uint8 [length], byte tokens.
        prompt: int32 [P, C], codes of the voice prompt; P = 0 for none.
        max_frames: new frames at most; P + max_frames <= config.frame_budget.
        key: a scalar typed key array; the draw for position t uses fold_in(key, t).
        settings: how tokens are drawn.
    """

    text: np.ndarray
    prompt: np.ndarray
    max_frames: int
    key: jax.Array
    settings: SamplingSettings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """What each of B clips carries besides its caches.

    Attributes:
        grid: int32 [B, length, C], tokens that are given or drawn, `FREE` elsewhere.
        position: int32 [B], the last position that is complete, whose tokens go in next.
        end: int32 [B], the position of channel 0's EOS; `NOT_ENDED` before it is known.
        limit: int32 [B], the position at which a clip ends at the latest.
        done: bool [B]; also true where a slot holds no clip.
        failed: bool [B], whether a logit was not finite, which also makes the clip done.
        key: PRNG keys [B].
        settings: arrays [B].
        text_mask: bool [B, S], False where a script is padded.
    """

    grid: jax.Array
    position: jax.Array
    end: jax.Array
    limit: jax.Array
    done: jax.Array
    failed: jax.Array
    key: jax.Array
    settings: SamplingSettings
    text_mask: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """A batch on the device.

    Attributes:
        slots: of B clips.
        cache: self-attention keys and values of each layer, 2B lanes: all unconditional ones, then the conditional.
        cross: cross-attention keys and values of each layer, B lanes; an unconditional lane needs none, see
            `unconditional`.
    """

    slots: Slots
    cache: list[KV]
    cross: list[KV]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What the host reads of a call. Not part of the state, so that it can be read while the next call runs.

    Attributes:
        numbers: int32 [4, B]: position, end, done and failed of `Slots`.
        tokens: int32 [B, steps_per_call, C], the grid from the position after the one at which the call began.
    """

    numbers: jax.Array
    tokens: jax.Array


# --- Sizes -----------------------------------------------------------------------------------------------------------


def bucket(size: int, smallest: int, largest: int) -> int:
    """The least of `smallest`, 2 `smallest`, 4 `smallest`, ... that holds `size`; `largest` where that is less."""
    bound = smallest
    while bound < size:
        bound *= 2
    return max(size, min(bound, largest))


def text_size(length: int, config: DiaConfig) -> int:
    """The size to which a script of this many bytes is padded."""
    return bucket(length, FIRST_TEXT_SIZE, config.encoder.max_length)


def cache_size(positions: int, config: DiaConfig) -> int:
    """The size of a cache that holds this many positions; 0 for none."""
    return bucket(positions, PREFILL_SIZE, _round_up(config.decoder.max_length)) if positions else 0


def steps_per_call(config: DiaConfig) -> int:
    """Steps of a call at most.

    A clip whose EOS is drawn has max_delay - 1 more steps to go. Calls that are not much longer let the host know most
    ends one call ahead, so that a slot changes hands without an idle call. Two such calls make the first chunk of a
    stream.
    """
    return config.max_delay + 2


def grid_length(config: DiaConfig) -> int:
    """Positions of a grid: all that a clip can have, and what a call that begins at the last one looks at."""
    return _round_up(config.decoder.max_length + steps_per_call(config))


def _round_up(positions: int) -> int:
    return -(-positions // PREFILL_SIZE) * PREFILL_SIZE


def decoder_weights(params: nnx.State) -> list[Any]:
    """What a step reads of the weights: the decoder's kernels and norms.

    Of the embeddings it looks up a few vectors, and the cross-attention's keys and values are computed once for each
    clip.
    """
    idle = ("decoder.embeddings", "cross_attention.k_proj", "cross_attention.v_proj")
    flat = {".".join(map(str, path)): value for path, value in nnx.to_flat_state(params)}
    return [v for p, v in flat.items() if p.startswith("decoder.") and not any(part in p for part in idle)]


def step_bytes(params: nnx.State, state: DecodeState) -> dict[str, int]:
    """The bytes that one step must read on each device; their sum over the memory's bandwidth is the floor of its time.

    Args:
        params, state: arrays, or shapes and dtypes with or without shardings.
    """
    parts = {"weights": decoder_weights(params), "self cache": state.cache, "cross cache": state.cross}
    return {name: sum(map(_nbytes, jax.tree.leaves(part))) for name, part in parts.items()}


def _nbytes(value: Any) -> int:
    where = getattr(value, "sharding", None)
    shape = value.shape if where is None else where.shard_shape(value.shape)
    return math.prod(shape) * np.dtype(value.dtype).itemsize


# --- Starting a clip -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Prefilled:
    """A script and its voice prompt, read by the model; any number of requests for the same two may start from it.

    Attributes:
        text_mask: bool [1, S], False where the script is padded.
        cache: self-attention keys and values of each layer, 2 lanes, as many positions as the prompt needs.
        cross: cross-attention keys and values of each layer, 1 lane.
    """

    text_mask: np.ndarray
    cache: list[KV]
    cross: list[KV]


@functools.partial(jax.jit, static_argnums=0)
def unconditional(graphdef: nnx.GraphDef[DiaModel], params: nnx.State) -> list[jax.Array]:
    """What the unconditional lanes have in place of cross-attention, float32 [D] for each layer; once a model."""
    return nnx.merge(graphdef, params).unconditional()


def prefill(
    graphdef: nnx.GraphDef[DiaModel],
    params: nnx.State,
    constants: list[jax.Array],
    config: DiaConfig,
    request: Request,
    *,
    size: int,
) -> Prefilled:
    """Encodes the script of a request, padded to `size` bytes, and runs its voice prompt.

    Args:
        graphdef, params, constants, config: the model, and what `unconditional` gives.
        request: the clip.
        size: see `text_size`.
    """
    frames = len(request.prompt)
    text = np.zeros((1, size), np.int32)
    text[0, : len(request.text)] = request.text
    cache, cross = _prefill(
        graphdef,
        params,
        constants,
        cache_size(frames, config),
        text,
        first_grid(request, config)[None],
        np.int32(frames),
    )
    return Prefilled(text != 0, cache, cross)


def first_grid(request: Request, config: DiaConfig) -> np.ndarray:
    return apply_delay(
        request.prompt,
        length=grid_length(config),
        delay_pattern=config.delay_pattern,
        bos_token_id=config.bos_token_id,
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _prefill(
    graphdef: nnx.GraphDef[DiaModel],
    params: nnx.State,
    constants: list[jax.Array],
    size: int,
    text: jax.Array,
    grid: jax.Array,
    prompt_frames: jax.Array,
) -> tuple[list[KV], list[KV]]:
    model = nnx.merge(graphdef, params)
    mask = text != 0
    cross = model.decoder.cross_cache(model.encoder(text, mask))
    cache = model.decoder.empty_cache(2, size)
    if size == 0:
        return split_heads((cache, cross))

    def run(i: jax.Array, cache: list[KV]) -> list[KV]:
        start = i * PREFILL_SIZE
        tokens = jax.lax.dynamic_slice_in_dim(grid, start, PREFILL_SIZE, axis=1)
        # Positions after the prompt are run too, on nonsense; the loop writes them again before it reads them.
        tokens = jnp.maximum(tokens, 0)
        return model.decoder(tokens, start[None], cross, mask, cache, unconditional=constants)[1]

    # The prompt's last position is the loop's first input, so positions 0 .. P - 1 are run here.
    return split_heads((jax.lax.fori_loop(0, -(-prompt_frames // PREFILL_SIZE), run, cache), cross))


# --- The loop --------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def decode_chunk(
    graphdef: nnx.GraphDef[DiaModel],
    params: nnx.State,
    constants: list[jax.Array],
    state: DecodeState,
    max_steps: int | jax.Array,
) -> tuple[DecodeState, Progress]:
    """Runs up to `max_steps` steps of every clip that is not done, or fewer if all are done before.

    Args:
        graphdef, params: the model, split.
        constants: from `unconditional`.
        state: donated. Its caches must hold position + max_steps positions for every clip that is not done.
        max_steps: at most `steps_per_call`.
    """
    model = nnx.merge(graphdef, params)
    begins = state.slots.position
    # Only what the call can reach goes through the loop, so that a step reads and writes it at one place for all clips.
    window = _each(jax.lax.dynamic_slice_in_dim)(state.slots.grid, begins, steps_per_call(model.config) + 1)

    def unfinished(carry: tuple[jax.Array, jax.Array, DecodeState]) -> jax.Array:
        steps, _, state = carry
        return (steps < jnp.minimum(max_steps, window.shape[1] - 1)) & ~jnp.all(state.slots.done)

    def step(carry: tuple[jax.Array, jax.Array, DecodeState]) -> tuple[jax.Array, jax.Array, DecodeState]:
        steps, window, state = carry
        return steps + 1, *_step(model, constants, steps, window, state)

    _, window, state = jax.lax.while_loop(unfinished, step, (jnp.int32(0), window, state))
    slots = state.slots
    grid = _each(jax.lax.dynamic_update_slice_in_dim)(slots.grid, window, begins)
    state = dataclasses.replace(state, slots=dataclasses.replace(slots, grid=grid))
    numbers = jnp.stack([slots.position, slots.end, slots.done.astype(jnp.int32), slots.failed.astype(jnp.int32)])
    return split_heads(state), Progress(numbers, window[:, 1:])


def _each(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function for each clip, along the axis of time; numbers are the same for all."""

    def apply(*arguments: Any) -> jax.Array:
        axes = tuple(None if isinstance(each, int) else 0 for each in arguments)
        return jax.vmap(functools.partial(function, axis=0), in_axes=axes)(*arguments)

    return apply


def _step(
    model: DiaModel, constants: list[jax.Array], steps: jax.Array, window: jax.Array, state: DecodeState
) -> tuple[jax.Array, DecodeState]:
    config, slots = model.config, state.slots
    # A clip that is done stays where it is, and what the window holds for it may be free.
    tokens = jnp.maximum(jax.lax.dynamic_slice_in_dim(window, steps, 1, axis=1), 0)  # [B, 1, C]
    hidden, cache = model.decoder(
        tokens, slots.position, state.cross, slots.text_mask, state.cache, unconditional=constants
    )
    logits = model.decoder.logits(hidden)[:, 0]
    uncond, cond = logits.reshape(2, -1, *logits.shape[1:])  # [B, C, V] each

    position = slots.position + 1
    draw = functools.partial(sample, eos_token_id=config.eos_token_id, variant=config.variant)
    drawn = jax.vmap(
        lambda uncond, cond, key, position, settings: draw(uncond, cond, jax.random.fold_in(key, position), settings)
    )(uncond, cond, slots.key, position, slots.settings)  # [B, C]

    ends = (drawn[:, 0] == config.eos_token_id) | (position >= slots.limit)
    end = jnp.where(ends, jnp.minimum(slots.end, position), slots.end)
    channel_end = end[:, None] + jnp.asarray(config.delay_pattern)
    drawn = jnp.where(position[:, None] == channel_end, config.eos_token_id, drawn)
    drawn = jnp.where(position[:, None] > channel_end, config.pad_token_id, drawn)

    given = jax.lax.dynamic_index_in_dim(window, steps + 1, axis=1, keepdims=False)
    new = jnp.where((given == FREE) & ~slots.done[:, None], drawn, given)
    # A sum is finite only if both its terms are.
    finite = jnp.isfinite(uncond + cond).all(axis=-1)  # [B, C]
    failed = slots.failed | (~slots.done & jnp.any(~finite, axis=1))
    slots = dataclasses.replace(
        slots,
        position=jnp.where(slots.done, slots.position, position),
        end=jnp.where(slots.done, slots.end, end),
        done=slots.done | failed | (position >= last_position(end, config)),
        failed=failed,
    )
    return jax.lax.dynamic_update_index_in_dim(window, new, steps + 1, axis=1), DecodeState(slots, cache, state.cross)


def last_position(end: Any, config: DiaConfig) -> Any:
    """Where a clip whose channel 0 ends at `end` is done.

    The last frame's last channel is max_delay - 1 positions after the end; nothing after it is ever read.
    """
    return end + max(config.max_delay - 1, 0)


def read_codes(grid: np.ndarray, *, start: int, stop: int, config: DiaConfig) -> np.ndarray:
    """Frames start .. stop - 1 of a clip's grid int [length, C], the delay undone; ids that are no codes become 0."""
    codes = revert_delay(grid, start=start, stop=stop, delay_pattern=config.delay_pattern)
    return np.where((codes < 0) | (codes >= config.eos_token_id), 0, codes)
