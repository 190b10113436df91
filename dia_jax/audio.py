"""Sound files and arrays: reading, mixing down, resampling, writing. Knows no model; the sample rate is handed in."""

import contextlib
import io
import os
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from dia_jax.config import DiaError
from dia_jax.files import new_file

FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
"""What `write_audio` writes, by suffix."""

RATES = (1_000, 384_000)
BLOCK = 1 << 16
SILENCE = 1e-4
"""A prompt whose peak lies below this (-80 dB) holds no voice."""


class AudioError(DiaError):
    """Audio that cannot be read, used or written; the message says which and why."""


def read_audio(path: str | os.PathLike, *, rate: int) -> np.ndarray:
    """Reads a sound file, mono, at a given rate.

    Args:
        path: any format that libsndfile reads (wav, flac, ogg, mp3, aiff, ...).
        rate: samples a second to resample to.

    Returns:
        float32 [n] in about -1 .. 1.

    Raises:
        AudioError: the file is missing, no sound file, empty or silent.
    """
    try:
        if not Path(path).is_file():
            raise AudioError(f"There is no audio file {path}.")
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: a headerless .raw
        raise AudioError(f"{path} is not a readable audio file ({error}); convert it to wav or flac.") from None
    return prepare_audio(samples, file_rate, rate=rate, name=str(path))


def prepare_audio(samples: Any, samples_rate: float, *, rate: int, name: str = "The audio prompt") -> np.ndarray:
    """Mixes down and resamples an array.

    Args:
        samples: [n], [n, channels] or [channels, n], at most 8 channels; floats in -1 .. 1, or integers of their full
            range.
        samples_rate: its samples a second, within `RATES`.
        rate: samples a second to resample to.
        name: what to call it in an error.

    Returns:
        float32 [m].

    Raises:
        AudioError: shape, dtype or rate is none of these, or it is empty, silent or not finite.
    """
    is_number = isinstance(samples_rate, (int, float, np.integer, np.floating)) and not isinstance(samples_rate, bool)
    if not is_number or not RATES[0] <= samples_rate <= RATES[1]:
        raise AudioError(f"{name} has sample rate {samples_rate!r}; give one between {RATES[0]} and {RATES[1]} Hz.")
    try:
        array = np.asarray(samples)
    except ValueError:
        raise AudioError(f"{name} is a ragged list; give numbers [n] or [n, channels].") from None
    if array.ndim not in (1, 2) or array.dtype.kind not in "iuf":
        raise AudioError(f"{name} is a {array.dtype} array of shape {array.shape}; give numbers [n] or [n, channels].")
    if array.size == 0:
        raise AudioError(f"{name} holds no samples.")
    if array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        middle = 0 if array.dtype.kind == "i" else (info.max + 1) / 2
        array = (array - middle) / ((info.max + 1) if array.dtype.kind == "i" else middle)
    array = array.astype(np.float32)
    if array.ndim == 2:
        array = array if array.shape[0] >= array.shape[1] else array.T
        if array.shape[1] > 8:
            raise AudioError(f"{name} has shape {np.shape(samples)}, which is {array.shape[1]} channels; 8 at most.")
        array = array.mean(axis=1)
    if not np.isfinite(array).all():
        raise AudioError(f"{name} holds NaN or infinite samples.")
    peak = float(np.abs(array).max())
    if peak < SILENCE:
        raise AudioError(f"{name} is silent (peak {peak:.1e}); use a recording of a voice.")
    if samples_rate != rate:
        array = soxr.resample(array, samples_rate, rate, quality="VHQ").astype(np.float32)
    if array.size == 0:
        raise AudioError(f"{name} is too short: no sample is left of it at {rate} Hz.")
    return array


def check_writable(path: str | os.PathLike) -> None:
    """Finds out, before any work is done, whether a sound file can be written.

    Raises:
        AudioError: the suffix is none of `FORMATS`, or the folder is missing or not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"Cannot write {path}: its suffix must be one of {', '.join(FORMATS)}.")
    try:
        is_directory = path.is_dir()
    except OSError as error:
        raise AudioError(f"Cannot write {path}: {error.strerror}.") from None
    if is_directory:
        raise AudioError(f"Cannot write {path}: it is a directory.")
    if not path.absolute().parent.is_dir():
        raise AudioError(f"Cannot write {path}: there is no directory {path.absolute().parent}.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise AudioError(f"Cannot write {path}: no permission to write in {path.absolute().parent}.")


def write_audio(path: str | os.PathLike, samples: np.ndarray, *, rate: int) -> None:
    """Writes a mono sound file, by suffix: .wav and .flac in 16 bit, .ogg (Vorbis), .mp3.

    The file appears whole or not at all; one that was there is replaced.

    Args:
        path: where.
        samples: float [n]; what lies outside -1 .. 1 is clipped.
        rate: samples a second.

    Raises:
        AudioError: see `check_writable`; or the samples are no finite array [n].
    """
    path = Path(path)
    check_writable(path)
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f" or not np.isfinite(samples).all():
        raise AudioError(f"Cannot write {path}: {samples.dtype} samples {samples.shape} are not finite floats [n].")
    kind, subtype = FORMATS[path.suffix.lower()]
    try:
        with (
            new_file(path) as temporary,
            soundfile.SoundFile(temporary, "w", samplerate=rate, channels=1, format=kind, subtype=subtype) as file,
        ):
            # In blocks: libsndfile's Vorbis encoder overflows its stack on long single writes.
            for start in range(0, len(samples), BLOCK):
                file.write(np.clip(samples[start : start + BLOCK], -1.0, 1.0))
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"Cannot write {path}: {error}.") from None


def pcm16(samples: np.ndarray) -> bytes:
    """Float samples as 16-bit little-endian PCM, rounded as in a .wav file; what lies outside -1 .. 1 is clipped."""
    raw = io.BytesIO()
    samples = np.clip(samples, -1.0, 1.0)
    soundfile.write(raw, samples, 44_100, format="RAW", subtype="PCM_16", endian="LITTLE")  # the rate is not written
    return raw.getvalue()


def check_growable(path: str | os.PathLike) -> None:
    """Finds out whether `growing_wav` can begin.

    Raises:
        AudioError: the suffix is not .wav, the file exists, or its folder is missing or not writable.
    """
    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise AudioError(f"Cannot stream to {path}: only a .wav file can grow; or use - for PCM on standard output.")
    check_writable(path)
    if path.exists():
        raise AudioError(f"Cannot stream to {path}: it exists, and a stream grows in place; remove it or rename.")


@contextlib.contextmanager
def growing_wav(path: str | os.PathLike, *, rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens a new mono 16-bit .wav file for writing chunk by chunk; after each one it is whole as it stands.

    Yields:
        a function that appends float samples [n].

    Raises:
        AudioError: see `check_growable`.
    """
    check_growable(path)
    try:
        with open(path, "xb") as file, wave.open(file, "wb") as wav:
            wav.setnchannels(1)
            wav.setsampwidth(2)
            wav.setframerate(rate)

            def append(samples: np.ndarray) -> None:
                wav.writeframes(pcm16(samples))  # mends the sizes in the header too
                file.flush()

            yield append
    except OSError as error:
        raise AudioError(f"Cannot write {path}: {error.strerror}.") from None
