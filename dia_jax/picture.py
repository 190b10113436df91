"""A picture of a recording: its spectrogram, with the script below it. Knows no model; needs matplotlib."""

import os
import textwrap
from pathlib import Path

import numpy as np

from dia_jax.config import DiaError
from dia_jax.files import new_file
from dia_jax.outputs import check_output, follow_links

WINDOW, HOP = 2048, 512
COLUMNS = 4096
"""The most columns of a spectrogram: 48 s at 44.1 kHz. A picture is some 1,000 pixels wide."""
BLOCK = 256
"""Windows that are transformed at a time: 4 MB of them."""
HIGHEST = 10_000
"""The highest frequency that is shown, in Hz."""
RANGE = 80
"""The level of the darkest colour below the loudest, in dB."""


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

    path = Path(path)
    seconds = len(samples) / rate
    lines = textwrap.wrap(text, 100)
    figure = Figure(figsize=(10, 3.6 + 0.2 * len(lines)), layout="constrained")
    axes = figure.subplots()
    extent = (0.0, seconds, 0.0, rate / 2000)
    axes.imshow(spectrogram(samples).T, origin="lower", aspect="auto", extent=extent, cmap="magma")
    axes.set(ylim=(0, HIGHEST / 1000), ylabel="kHz", xlabel="s\n\n" + "\n".join(lines).replace("$", r"\$"))
    try:
        with new_file(follow_links(path)) as temporary:
            figure.savefig(temporary, dpi=120)
    except OSError as error:
        raise PictureError(f"Cannot write {path}: {error.strerror}.") from None
