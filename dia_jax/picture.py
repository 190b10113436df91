"""A picture of a recording: its waveform's spectrogram, with the script under it. Knows no model; needs matplotlib."""

import os
import textwrap
from pathlib import Path

import numpy as np

from dia_jax.config import DiaError
from dia_jax.files import new_file

WINDOW, HOP = 2048, 512
HIGHEST = 10_000  # Hz that are shown
RANGE = 80  # dB that are shown below the loudest


class PictureError(DiaError):
    """A picture that cannot be drawn or written; the message says why."""


def check_drawable() -> None:
    """Finds out, before any work is done, whether a picture can be drawn.

    Raises:
        PictureError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PictureError("A picture needs matplotlib: pip install 'dia_jax[picture]'.") from None


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """float32 [n] -> dB below the loudest [1 + n / 512, 1025], at least -80; Hann windows of 2048."""
    padded = np.pad(samples, WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW))) ** 2
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-12), 10 ** (-RANGE / 10)))


def draw(path: str | os.PathLike, samples: np.ndarray, text: str, *, rate: int) -> None:
    """Writes a .png with the spectrogram of a clip and its script.

    Args:
        path: where; the file appears whole or not at all.
        samples: float32 [n], not empty.
        text: the script.
        rate: samples a second.

    Raises:
        PictureError: matplotlib is missing, or the file cannot be written.
    """
    check_drawable()
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
        with new_file(path) as temporary:
            figure.savefig(temporary, dpi=120)
    except OSError as error:
        raise PictureError(f"Cannot write {path}: {error.strerror}.") from None
