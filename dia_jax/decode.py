"""The decode loop: `prefill` makes a `DecodeState`, `decode_chunk` carries it on; each is one program a shape.

Knows the model, the grid and the end of a clip. Knows no text, files or audio. Nothing crosses to the host inside
`decode_chunk`; its settings and the number of its steps are traced, so one program serves whatever is asked.

Each clip stands at its own row of the grid and carries its own key, so what it becomes does not depend on its
neighbours, on the padding of the batch, or on how many steps a call runs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dia_jax.config import DiaConfig, SamplingSettings
from dia_jax.delay import FREE, apply_delay, revert_delay
from dia_jax.model import KV, DiaModel
from dia_jax.sampling import sample

PREFILL_ROWS = 256
"""Rows of a voice prompt that one pass of the prefill takes: bounds its memory; sizes of caches are multiples of it."""

FIRST_ROWS = 512
"""Rows of a new cache, 6 s. Each size is a program; but at 16 clips all 3072 rows are more than half a step's bytes."""

NOT_ENDED = np.iinfo(np.int32).max // 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Where B clips stand.

    Attributes:
        grid: int32 [B, rows, C], tokens that are given or drawn, `FREE` elsewhere.
        row: int32 [B], the last row that is complete, whose tokens go in next.
        end_row: int32 [B], the row of channel 0's EOS; `NOT_ENDED` before it is known.
        limit_row: int32 [B], the row at which a clip ends if it has not before.
        done: bool [B].
        keys: PRNG keys [B]; the draw for row r uses fold_in(key, r).
        text_mask: bool [B, S], False where a script is padded.
        cache: self-attention keys and values of each layer, 2B rows (unconditional, conditional).
        cross: cross-attention keys and values of each layer, 2B rows.
    """

    grid: jax.Array
    row: jax.Array
    end_row: jax.Array
    limit_row: jax.Array
    done: jax.Array
    keys: jax.Array
    text_mask: jax.Array
    cache: list[KV]
    cross: list[KV]


@dataclasses.dataclass(frozen=True)
class Clip:
    """What one clip starts from, on the host.

    Attributes:
        text: uint8 [length], byte tokens.
        prompt: int [P, C], codes of the voice prompt; P = 0 for none.
        max_frames: new frames at most.
        key: its PRNG key, a scalar typed key array.
        number: what the caller knows it by.
    """

    text: np.ndarray
    prompt: np.ndarray
    max_frames: int
    key: jax.Array
    number: int = 0


def bucket(size: int, smallest: int, largest: int) -> int:
    """The least of `smallest`, 2 `smallest`, 4 `smallest`, ... that holds `size`; `largest` where that is less."""
    bound = smallest
    while bound < size:
        bound *= 2
    return max(size, min(bound, largest))


def cache_rows(row: int, config: DiaConfig) -> int:
    """The size of a cache in which `row` can be written."""
    return bucket(row + 1, PREFILL_ROWS, _grid_rows(config))


def _grid_rows(config: DiaConfig) -> int:
    return -(-config.decoder.max_length // PREFILL_ROWS) * PREFILL_ROWS


def text_bucket(clips: list[Clip], config: DiaConfig) -> int:
    """The size to which the scripts of these clips are padded."""
    return bucket(max(len(clip.text) for clip in clips), 128, config.encoder.max_length)


def prefill(
    graphdef: nnx.GraphDef[DiaModel],
    params: nnx.State,
    config: DiaConfig,
    clips: list[Clip],
    *,
    rows: int | None = None,
    text_size: int | None = None,
) -> DecodeState:
    """Encodes the scripts and runs the voice prompts, padding everything up to few sizes.

    Args:
        graphdef, params: the model, split.
        clips: one or more; the caller has checked that each fits (P + max_frames <= config.frame_budget).
        rows: size of the caches; by default what the first `FIRST_ROWS` rows need, or the prompts if they are longer.
        text_size: that of the scripts; by default their `text_bucket`.
    """
    if rows is None:
        last = max(len(clip.prompt) + clip.max_frames for clip in clips) + config.max_delay
        rows = cache_rows(max(min(last, FIRST_ROWS - 1), *(len(clip.prompt) for clip in clips), 0), config)
    if text_size is None:
        text_size = text_bucket(clips, config)
    batch = bucket(len(clips), 1, 1 << 30)

    text = np.zeros((batch, text_size), np.int32)
    grid = np.full((batch, _grid_rows(config), config.decoder.num_channels), config.pad_token_id, np.int32)
    prompt_frames, limit_row = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
    for i, clip in enumerate(clips):
        text[i, : len(clip.text)] = clip.text
        grid[i] = apply_delay(
            clip.prompt, rows=grid.shape[1], delay_pattern=config.delay_pattern, bos_token_id=config.bos_token_id
        )
        prompt_frames[i] = len(clip.prompt)
        limit_row[i] = 1 + len(clip.prompt) + clip.max_frames
    keys = jnp.stack([clips[min(i, len(clips) - 1)].key for i in range(batch)])
    done = np.arange(batch) >= len(clips)
    return _prefill(graphdef, params, rows, text, grid, prompt_frames, limit_row, done, keys)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _prefill(graphdef, params, rows, text, grid, prompt_frames, limit_row, done, keys) -> DecodeState:
    model = nnx.merge(graphdef, params)
    text_mask = text != 0
    mask = _two_rows(text_mask)
    script = jnp.stack([jnp.zeros_like(text), text], axis=1).reshape(-1, text.shape[1])
    cross = model.decoder.cross_cache(model.encoder(script, mask))

    def run_rows(i, cache):
        start = i * PREFILL_ROWS
        tokens = jax.lax.dynamic_slice_in_dim(grid, start, PREFILL_ROWS, axis=1)
        # Rows behind a clip's prompt are run too, on nonsense; the loop writes them anew before it looks at them.
        tokens = _two_rows(jnp.maximum(tokens, 0))
        starts = jnp.full(tokens.shape[0], start, jnp.int32)
        return model.decoder(tokens, starts, cross, mask, cache)[1]

    # The prompt's last row is the loop's first input, so rows 0 .. P - 1 are run here.
    passes = -(-jnp.max(prompt_frames) // PREFILL_ROWS)
    cache = jax.lax.fori_loop(0, passes, run_rows, model.decoder.empty_cache(mask.shape[0], rows))
    return DecodeState(
        grid=grid,
        row=prompt_frames,
        end_row=jnp.full_like(prompt_frames, NOT_ENDED),
        limit_row=limit_row,
        done=done,
        keys=keys,
        text_mask=text_mask,
        cache=cache,
        cross=cross,
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def decode_chunk(
    graphdef: nnx.GraphDef[DiaModel],
    params: nnx.State,
    state: DecodeState,
    settings: SamplingSettings,
    max_steps: int | jax.Array,
) -> DecodeState:
    """Runs up to `max_steps` rows, or fewer if every clip is done before. The state that goes in is donated.

    The caches must hold the rows: state.row + max_steps <= their size for every clip that is not done.
    """
    model = nnx.merge(graphdef, params)

    def unfinished(carry):
        steps, state = carry
        return (steps < max_steps) & ~jnp.all(state.done)

    def step(carry):
        steps, state = carry
        return steps + 1, _step(model, state, settings)

    return jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]


def _step(model: DiaModel, state: DecodeState, settings: SamplingSettings) -> DecodeState:
    config = model.config
    clips = jnp.arange(state.row.shape[0])
    tokens = _two_rows(state.grid[clips, state.row][:, None])  # [2B, 1, C]
    hidden, cache = model.decoder(tokens, _two_rows(state.row), state.cross, _two_rows(state.text_mask), state.cache)
    logits = model.decoder.logits(hidden)[:, 0].reshape(-1, 2, config.decoder.num_channels, config.decoder.vocab_size)

    row = state.row + 1
    draw = functools.partial(sample, settings=settings, eos_token_id=config.eos_token_id, variant=config.variant)
    drawn = jax.vmap(lambda logits, key, row: draw(logits[0], logits[1], jax.random.fold_in(key, row)))(
        logits, state.keys, row
    )  # [B, C]

    ends = (drawn[:, 0] == config.eos_token_id) | (row >= state.limit_row)
    end_row = jnp.where(ends, jnp.minimum(state.end_row, row), state.end_row)
    channel_end = end_row[:, None] + jnp.asarray(config.delay_pattern)
    drawn = jnp.where(row[:, None] == channel_end, config.eos_token_id, drawn)
    drawn = jnp.where(row[:, None] > channel_end, config.pad_token_id, drawn)

    given = state.grid[clips, row]
    new = jnp.where((given == FREE) & ~state.done[:, None], drawn, given)
    # The last frame's last channel stands max_delay - 1 rows behind the end; nothing after it is ever read.
    done = state.done | (row >= end_row + max(config.max_delay - 1, 0))
    return dataclasses.replace(
        state,
        grid=state.grid.at[clips, row].set(new),
        row=jnp.where(state.done, state.row, row),
        end_row=jnp.where(state.done, state.end_row, end_row),
        done=done,
        cache=cache,
    )


@functools.partial(jax.jit, static_argnames="rows")
def grow(cache: list[KV], rows: int) -> list[KV]:
    """The same caches with room for `rows` rows."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, rows - x.shape[2]), (0, 0))), cache)


@functools.partial(jax.jit, donate_argnames="state")
def insert(state: DecodeState, clip: DecodeState, slot: int | jax.Array) -> DecodeState:
    """Puts a clip, a state of B = 1 and of the same sizes otherwise, in the place of another."""
    # An array has one row a clip or two, and so has the part that goes in.
    return jax.tree.map(
        lambda all_, one: jax.lax.dynamic_update_slice_in_dim(all_, one, slot * one.shape[0], axis=0), state, clip
    )


@jax.jit
def select(state: DecodeState, slots: jax.Array) -> DecodeState:
    """The clips in `slots`, int [n], as a batch of their own."""
    batch = len(state.row)
    return jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[1:])[slots].reshape(-1, *x.shape[1:]), state)


def _two_rows(x: jax.Array) -> jax.Array:
    """[B, ...] -> [2B, ...]: a clip's unconditional and conditional row, side by side."""
    return jnp.repeat(x, 2, axis=0)


def read_codes(grid: np.ndarray, *, start: int, stop: int, config: DiaConfig) -> np.ndarray:
    """Frames start .. stop - 1 of a clip's grid int [rows, C], the delay undone; ids that are no codes become 0."""
    codes = revert_delay(grid, start=start, stop=stop, delay_pattern=config.delay_pattern)
    return np.where((codes < 0) | (codes >= config.eos_token_id), 0, codes)
