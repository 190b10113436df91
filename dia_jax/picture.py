"""A picture of a recording: its spectrogram, with the script or its turns and words below it.

Knows no model, and not how times are found; needs matplotlib.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dia_jax.config import DiaError
from dia_jax.files import new_file
from dia_jax.outputs import check_output, follow_links

if TYPE_CHECKING:
    from dia_jax.longform.speech import SpokenTurn

WINDOW, HOP = 2048, 512
COLUMNS = 4096
"""The most columns of a spectrogram: 48 s at 44.1 kHz. A picture is some 1,000 pixels wide."""
BLOCK = 256
"""Windows that are transformed at a time: 4 MB of them."""
HIGHEST = 10_000
"""The highest frequency that is shown, in Hz."""
RANGE = 80
"""The level of the darkest colour below the loudest, in dB."""
SPEAKERS = ("#0b57a4", "#9a3b00", "#6a2fa0", "#00665a", "#a3174f", "#5d5300")
"""The colours of speakers, in the order in which they speak first."""
WIDTHS = (10.0, 30.0)
"""The narrowest and the widest picture of an alignment, in inches; in between, a second has an inch."""


class PictureError(DiaError):
    """A picture that cannot be drawn or written; the message says why."""


def check_drawable(path: str | os.PathLike) -> None:
    """Finds out, before any work is done, whether a picture can be drawn.

    Args:
        path: of the picture. Its folder is tried with a temporary file; a file that is there stays as it is.

    Raises:
        PictureError: matplotlib is missing, or the system refuses to create the file.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PictureError("A picture needs matplotlib: pip install 'dia_jax[picture]'.") from None
    try:
        check_output(path)
    except OSError as error:
        raise PictureError(f"Cannot write {path}: {error.strerror}.") from None


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """The short-time spectrum of a recording, with Hann windows of 2048 samples, 512 apart.

    Where that makes more than `COLUMNS` windows, each column is the mean power of as many consecutive windows as are
    needed; so memory does not grow with the recording, and a level means the same in a long one as in a short one.

    Args:
        samples: float [n], not empty.

    Returns:
        float64 [columns, 1025], in dB below the loudest, at least -80. Up to n = 2,097,151 samples it has
        1 + n // 512 columns.
    """
    windows = 1 + len(samples) // HOP
    pooled = -(-windows // COLUMNS)
    power = np.zeros((-(-windows // pooled), 1 + WINDOW // 2))
    for first in range(0, windows, BLOCK):
        last = min(first + BLOCK, windows)
        # Window i is centred on sample 512 i; before the first sample and after the last one there is silence.
        start, stop = first * HOP - WINDOW // 2, (last - 1) * HOP + WINDOW // 2
        block = np.pad(samples[max(start, 0) : stop], (max(-start, 0), max(stop - len(samples), 0)))
        parts = np.lib.stride_tricks.sliding_window_view(block, WINDOW)[::HOP]
        np.add.at(power, np.arange(first, last) // pooled, np.abs(np.fft.rfft(parts * np.hanning(WINDOW))) ** 2)
    power /= np.minimum(pooled, windows - pooled * np.arange(len(power)))[:, None]
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-12), 10 ** (-RANGE / 10)))


def draw(path: str | os.PathLike, samples: np.ndarray, text: str, *, rate: int) -> None:
    """Writes a .png with the spectrogram of a clip and its script.

    Args:
        path: of the file, which appears whole or not at all; of a symbolic link, the target is replaced.
        samples: float32 [n], not empty.
        text: the script.
        rate: the sample rate in Hz.

    Raises:
        PictureError: matplotlib is missing, or the file cannot be written.
    """
    check_drawable(path)
    from matplotlib.figure import Figure

    lines = textwrap.wrap(text, 100)
    figure = Figure(figsize=(10, 3.6 + 0.2 * len(lines)), layout="constrained")
    axes = figure.subplots()
    _show_spectrogram(axes, samples, rate=rate)
    axes.set_xlabel("s\n\n" + "\n".join(lines).replace("$", r"\$"))
    _save(figure, path)


def draw_alignment(
    path: str | os.PathLike,
    samples: np.ndarray,
    turns: Sequence[SpokenTurn],
    *,
    rate: int,
    attention: np.ndarray | None = None,
    positions: np.ndarray | None = None,
) -> None:
    """Writes a .png with the spectrogram of a recording and, below it, who says which word when.

    Words whose text finds no room are drawn without it. The less sure the time of a word, the paler it is.

    Args:
        path: of the file, which appears whole or not at all; of a symbolic link, the target is replaced.
        samples: float32 [n], not empty.
        turns: with their words; times in seconds of the samples.
        rate: the sample rate in Hz.
        attention: float [frames, bytes], how much of each byte of the script was heard in each frame of the whole
            recording; drawn in a panel of its own.
        positions: [frames], the byte that is said in each frame, drawn over the attention.

    Raises:
        PictureError: matplotlib is missing, or the file cannot be written.
    """
    check_drawable(path)
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    seconds = len(samples) / rate
    heights = [3.0, 0.32, 0.5] + ([] if attention is None else [2.6])
    size = (min(max(seconds, WIDTHS[0]), WIDTHS[1]), 0.6 + sum(heights))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.02, h_pad=0.02))
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    for panel in panels:
        panel.tick_params(bottom=panel is panels[-1])
    panels[-1].set(xlabel="s", xlim=(0.0, seconds))
    _show_spectrogram(panels[0], samples, rate=rate)
    if attention is not None:
        _show_attention(panels[3], attention, positions, seconds=seconds)
    for panel, name in zip(panels[1:3], ("turns", "words"), strict=True):
        panel.set(ylim=(0, 1), yticks=[])
        panel.set_ylabel(name, rotation=0, ha="right", va="center")
        panel.spines[["top", "right", "left", "bottom"]].set_visible(False)
    # The layout is settled before any text is placed, so that its width in seconds is known.
    figure.draw_without_rendering()
    speakers = list(dict.fromkeys(turn.speaker for turn in turns))
    for turn in turns:
        colour = SPEAKERS[speakers.index(turn.speaker) % len(SPEAKERS)]
        _show_span(panels[1], turn.speaker, turn.start, turn.end, colour=colour, opacity=1.0, ink="white")
        for word in turn.words:
            opacity = 0.1 + 0.3 * min(max(word.confidence, 0.0), 1.0)
            _show_span(panels[2], word.text, word.start, word.end, colour=colour, opacity=opacity, ink="black")
    _save(figure, path)


def _show_spectrogram(axes: Any, samples: np.ndarray, *, rate: int) -> None:
    extent = (0.0, len(samples) / rate, 0.0, rate / 2000)
    axes.imshow(spectrogram(samples).T, origin="lower", aspect="auto", extent=extent, cmap="magma")
    axes.set(ylim=(0, HIGHEST / 1000), ylabel="kHz")


def _show_attention(axes: Any, attention: np.ndarray, positions: np.ndarray | None, *, seconds: float) -> None:
    """Each frame relative to its own largest weight, because weights fall as scripts grow."""
    shown = attention / np.maximum(attention.max(axis=1, keepdims=True), 1e-12)
    extent = (0.0, seconds, 0.0, attention.shape[1])
    axes.imshow(shown.T, origin="lower", aspect="auto", extent=extent, cmap="Greys", interpolation="nearest")
    axes.set_ylabel("byte")
    if positions is not None:
        times = (np.arange(len(positions)) + 0.5) * seconds / len(positions)
        axes.plot(times, np.asarray(positions) + 0.5, color="#e0431b", linewidth=1.2, drawstyle="steps-mid")


def _show_span(axes: Any, text: str, start: float, end: float, *, colour: str, opacity: float, ink: str) -> None:
    """A box from start to end, with its text where that fits."""
    axes.axvspan(start, end, 0.08, 0.92, facecolor=colour, edgecolor="none", alpha=opacity)
    middle = (start + end) / 2
    label = axes.text(middle, 0.47, text, color=ink, size=8, ha="center", va="center", parse_math=False)
    box = label.get_window_extent().transformed(axes.transData.inverted())
    if box.width > 1.1 * (end - start):
        label.remove()


def _save(figure: Any, path: str | os.PathLike) -> None:
    path = Path(path)
    try:
        with new_file(follow_links(path)) as temporary:
            figure.savefig(temporary, dpi=120)
    except OSError as error:
        raise PictureError(f"Cannot write {path}: {error.strerror}.") from None
