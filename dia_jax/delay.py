"""The delay pattern, as pure integer functions on numpy arrays; no model, no device.

The decoder's grid has one column for each channel and one row for each position in time. Position 0 holds BOS in every
channel, and code frame f of channel c is at position 1 + f + delay[c]; the slots before a channel's first code hold
BOS. A slot is either given (BOS, or a voice prompt's code) or free, to be drawn by the model.
"""

import numpy as np

FREE = -1
"""Marks a slot of the grid that the model is to fill."""


def apply_delay(codes: np.ndarray, *, length: int, delay_pattern: tuple[int, ...], bos_token_id: int) -> np.ndarray:
    """Lays a voice prompt into the grid.

    Args:
        codes: int array [P, C], the prompt's frames; P = 0 for none.
        length: positions of the grid, at least P + max(delay_pattern) + 1.
        delay_pattern: C delays, in positions.
        bos_token_id: fills a channel before its first code.

    Returns:
        int32 array [length, C]: the given tokens, `FREE` elsewhere.
    """
    frames = len(codes)
    if length < frames + max(delay_pattern) + 1:
        raise ValueError(
            f"{frames} prompt frames and their delay need {frames + max(delay_pattern) + 1} positions, not {length}."
        )
    grid = np.full((length, len(delay_pattern)), FREE, np.int32)
    for channel, delay in enumerate(delay_pattern):
        grid[: 1 + delay, channel] = bos_token_id
        grid[1 + delay : 1 + delay + frames, channel] = codes[:, channel]
    return grid


def finished_grid(
    codes: np.ndarray, *, delay_pattern: tuple[int, ...], bos_token_id: int, eos_token_id: int, pad_token_id: int
) -> np.ndarray:
    """Lays a finished clip into the grid, for a teacher-forced pass.

    Args:
        codes: int array [T, C].
        delay_pattern: C delays, in positions.
        bos_token_id, eos_token_id, pad_token_id: what stands before a channel's codes, behind its last, and then.

    Returns:
        int32 array [T + 2 + max(delay_pattern), C].
    """
    ended = np.concatenate([codes, np.full((1, codes.shape[1]), eos_token_id, codes.dtype)])
    length = len(ended) + 1 + max(delay_pattern)
    grid = apply_delay(ended, length=length, delay_pattern=delay_pattern, bos_token_id=bos_token_id)
    return np.where(grid == FREE, pad_token_id, grid)


def revert_delay(grid: np.ndarray, *, start: int, stop: int, delay_pattern: tuple[int, ...]) -> np.ndarray:
    """Reads frames out of the grid.

    Args:
        grid: int array [length, C], length >= 1 + stop + max(delay_pattern).
        start: first frame (the voice prompt's length, to cut it off).
        stop: frame after the last.
        delay_pattern: C delays, in positions.

    Returns:
        int32 array [stop - start, C]. A token that is no code is returned as it is in the grid.
    """
    columns = [grid[1 + start + delay : 1 + stop + delay, channel] for channel, delay in enumerate(delay_pattern)]
    return np.stack(columns, axis=1).astype(np.int32)
