"""The delay pattern, as pure integer functions on numpy arrays; no model, no device.

The decoder's grid has one column a channel. Row 0 holds BOS in every channel, and code frame f of channel c stands at
row 1 + f + delay[c]; the slots before a channel's first code hold BOS. What stands in a slot is either given (BOS, or a
voice prompt's code) or free, to be drawn by the model.
"""

import numpy as np

FREE = -1
"""Marks a slot of the grid that the model is to fill."""


def apply_delay(codes: np.ndarray, *, rows: int, delay_pattern: tuple[int, ...], bos_token_id: int) -> np.ndarray:
    """Lays a voice prompt into the grid.

    Args:
        codes: int array [P, C], the prompt's frames; P = 0 for none.
        rows: rows of the grid, at least P + max(delay_pattern) + 1.
        delay_pattern: C delays, in rows.
        bos_token_id: what stands before a channel's first code.

    Returns:
        int32 array [rows, C]: the given tokens, `FREE` elsewhere.
    """
    frames = len(codes)
    if rows < frames + max(delay_pattern) + 1:
        raise ValueError(
            f"{frames} prompt frames and their delay need {frames + max(delay_pattern) + 1} rows, not {rows}."
        )
    grid = np.full((rows, len(delay_pattern)), FREE, np.int32)
    for channel, delay in enumerate(delay_pattern):
        grid[: 1 + delay, channel] = bos_token_id
        grid[1 + delay : 1 + delay + frames, channel] = codes[:, channel]
    return grid


def revert_delay(grid: np.ndarray, *, start: int, stop: int, delay_pattern: tuple[int, ...]) -> np.ndarray:
    """Reads frames out of the grid.

    Args:
        grid: int array [rows, C], rows >= 1 + stop + max(delay_pattern).
        start: first frame (the voice prompt's length, to cut it off).
        stop: frame after the last.
        delay_pattern: C delays, in rows.

    Returns:
        int32 array [stop - start, C]. A token that is no code stays as it stands in the grid.
    """
    columns = [grid[1 + start + delay : 1 + stop + delay, channel] for channel, delay in enumerate(delay_pattern)]
    return np.stack(columns, axis=1).astype(np.int32)
