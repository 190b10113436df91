"""Sound files and arrays: reading, mixing down, resampling, writing. Knows no model; the sample rate is handed in.

A recording is read, mixed down and resampled block by block, so that memory holds the mono result and one block more,
whatever the file contains or claims to contain.
"""

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
from dia_jax.outputs import check_output, follow_links

FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
"""What `write_audio` writes, by suffix."""

RATES = (1_000, 384_000)
"""The lowest and the highest sample rate, in Hz."""
MAX_CHANNELS = 8
MAX_SECONDS = 3600.0
"""The longest recording that `read_audio` takes by default: 635 MB of samples at 44.1 kHz."""
BLOCK = 1 << 16
"""Frames that are read or written at a time."""
UNKNOWN_FRAMES = 2**63 - 1
"""What libsndfile gives as the length of a file whose header does not state it, such as a FLAC from a pipe."""
SILENCE = 1e-4
"""A prompt whose peak lies below this (-80 dB) contains no voice."""


class AudioError(DiaError):
    """Audio that cannot be read, used or written; the message says which and why."""


class _Forward(soundfile.SoundFile):
    """A file that is read from front to back.

    soundfile seeks to the current position after each read where it can. In an MP3 that returns other samples than
    reading on, and in a FLAC without a stated length it fails at the end.
    """

    def seekable(self) -> bool:
        return False


def read_audio(path: str | os.PathLike, *, rate: int, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Reads a sound file, mono, at a given rate.

    Args:
        path: any format that libsndfile reads (wav, flac, ogg, mp3, aiff, ...), at most 8 channels.
        rate: the sample rate of the result, in Hz.
        max_seconds: the longest recording that is read. The header is checked first, and then what is really read.

    Returns:
        float32 [n], in about -1 .. 1.

    Raises:
        AudioError: the file is missing, not a sound file, too long, empty, silent or not finite.
    """
    # BytesIO grows in place, so that the samples are never there twice, as they would be with a list of blocks.
    result = io.BytesIO()
    try:
        if not Path(path).is_file():
            raise AudioError(f"There is no audio file {path}.")
        with _Forward(_file_name(path)) as file:
            _check_rate(file.samplerate, str(path))
            _check_channels(file.channels, str(path))
            most = int(max_seconds * file.samplerate)
            if most < file.frames < UNKNOWN_FRAMES:
                raise AudioError(
                    f"{path} has {file.frames / file.samplerate:,.1f} s of audio according to its header; at most "
                    f"{max_seconds:g} s are read."
                )
            resampler = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32", quality="VHQ")
            frames, peak = 0, 0.0
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                frames += len(block)
                if frames > most:
                    raise AudioError(f"{path} has more than {max_seconds:g} s of audio; at most that is read.")
                mono = block.mean(axis=1)
                peak = max(peak, _peak(mono, str(path)))
                result.write((mono if file.samplerate == rate else resampler.resample_chunk(mono)).data)
            if file.samplerate != rate:
                result.write(resampler.resample_chunk(np.zeros(0, np.float32), last=True).data)
    except AudioError:
        raise
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error.error_string) from None
    except (OSError, TypeError, ValueError, MemoryError) as error:  # damaged headers; TypeError: a headerless .raw
        raise _unreadable(path, str(error)) from None
    if frames == 0:
        raise AudioError(f"{path} holds no samples.")
    _check_heard(peak, result.tell(), str(path), rate)
    return np.frombuffer(result.getbuffer(), np.float32)


def _unreadable(path: str | os.PathLike, reason: str) -> AudioError:
    return AudioError(f"{path} is not a readable audio file ({reason.rstrip('.')}); convert it to wav or flac.")


def _file_name(path: str | os.PathLike) -> Any:
    """A path as soundfile takes it: as bytes where the system's names are bytes, because they need not be UTF-8."""
    return os.fsencode(path) if os.name == "posix" else os.fspath(path)


def _check_rate(value: Any, name: str) -> None:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not RATES[0] <= value <= RATES[1]:
        shown = " ".join(repr(value).split())  # an array's has several lines
        raise AudioError(f"{name} has sample rate {shown}; give one between {RATES[0]} and {RATES[1]} Hz.")


def _check_channels(channels: int, name: str) -> None:
    if channels > MAX_CHANNELS:
        raise AudioError(f"{name} has {channels} channels; {MAX_CHANNELS} at most.")


def _peak(mono: np.ndarray, name: str) -> float:
    """The largest magnitude of finite samples [n], without a copy of them."""
    lowest, highest = float(mono.min()), float(mono.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise AudioError(f"{name} holds NaN or infinite samples.")
    return max(-lowest, highest)


def _check_heard(peak: float, size: int, name: str, rate: int) -> None:
    if peak < SILENCE:
        raise AudioError(f"{name} is silent (peak {peak:.1e}); use a recording of a voice.")
    if size == 0:
        raise AudioError(f"{name} is too short: no sample is left of it at {rate} Hz.")


def prepare_audio(samples: Any, samples_rate: float, *, rate: int, name: str = "The audio prompt") -> np.ndarray:
    """Mixes down and resamples an array.

    Args:
        samples: [n], [n, channels] or [channels, n], at most 8 channels; floats in -1 .. 1, or integers of their full
            range.
        samples_rate: its sample rate in Hz, within `RATES`.
        rate: the sample rate of the result, in Hz.
        name: how an error refers to it.

    Returns:
        float32 [m].

    Raises:
        AudioError: shape, dtype or rate is none of these, or it is empty, silent or not finite.
    """
    _check_rate(samples_rate, name)
    try:
        array = np.asarray(samples)
    except (ValueError, TypeError):  # TypeError: keys of jax.random
        raise AudioError(f"{name} is a ragged list or no numbers; give numbers [n] or [n, channels].") from None
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
        _check_channels(array.shape[1], name)
        array = array.mean(axis=1)
    peak = _peak(array, name)
    if samples_rate != rate:
        array = soxr.resample(array, samples_rate, rate, quality="VHQ").astype(np.float32)
    _check_heard(peak, array.size, name, rate)
    return array


def check_writable(path: str | os.PathLike) -> None:
    """Finds out, before any work is done, whether a sound file can be written.

    Args:
        path: of the file. Its folder is tried with a temporary file; a file that is there stays as it is.

    Raises:
        AudioError: the suffix is none of `FORMATS`, or the system refuses to create the file.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"Cannot write {path}: its suffix must be one of {', '.join(FORMATS)}.")
    try:
        check_output(path)
    except OSError as error:
        raise AudioError(f"Cannot write {path}: {error.strerror}.") from None


def write_audio(
    path: str | os.PathLike, samples: np.ndarray, *, rate: int, tag: Callable[[Path], None] | None = None
) -> None:
    """Writes a mono sound file, by suffix: .wav and .flac in 16 bit, .ogg (Vorbis), .mp3.

    The file appears whole or not at all. A file that was there is replaced; of a symbolic link, the target is.

    Args:
        path: of the file.
        samples: float [n]; values outside -1 .. 1 are clipped.
        rate: the sample rate in Hz.
        tag: called with the written file before it gets its name, to add tags to it.

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
        with new_file(follow_links(path)) as temporary:
            with soundfile.SoundFile(_file_name(temporary), "w", rate, 1, format=kind, subtype=subtype) as file:
                # In blocks: libsndfile's Vorbis encoder overflows its stack on long single writes.
                for start in range(0, len(samples), BLOCK):
                    file.write(np.clip(samples[start : start + BLOCK], -1.0, 1.0))
            if tag is not None:
                tag(temporary)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"Cannot write {path}: {error.error_string}") from None
    except OSError as error:
        raise AudioError(f"Cannot write {path}: {error.strerror}.") from None


def pcm16(samples: np.ndarray) -> bytes:
    """Float samples as 16-bit little-endian PCM, rounded as in a .wav file; values outside -1 .. 1 are clipped."""
    raw = io.BytesIO()
    samples = np.clip(samples, -1.0, 1.0)
    soundfile.write(raw, samples, 44_100, format="RAW", subtype="PCM_16", endian="LITTLE")  # the rate is not written
    return raw.getvalue()


def check_growable(path: str | os.PathLike) -> None:
    """Finds out, before any work is done, whether `growing_wav` can begin.

    Raises:
        AudioError: the suffix is not .wav, the file exists, or the system refuses to create it.
    """
    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise AudioError(f"Cannot stream to {path}: only a .wav file can grow; or use - for PCM on standard output.")
    check_writable(path)
    if path.exists():
        raise AudioError(f"Cannot stream to {path}: it exists, and a stream grows in place; remove it or rename.")


@contextlib.contextmanager
def growing_wav(path: str | os.PathLike, *, rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens a new mono 16-bit .wav file for writing chunk by chunk; after each chunk the file is complete.

    Yields:
        a function that appends float samples [n].

    Raises:
        AudioError: see `check_growable`.
    """
    check_growable(path)
    try:
        with open(follow_links(path), "xb") as file, wave.open(file, "wb") as wav:
            wav.setnchannels(1)
            wav.setsampwidth(2)
            wav.setframerate(rate)

            def append(samples: np.ndarray) -> None:
                wav.writeframes(pcm16(samples))  # also patches the header
                file.flush()

            yield append
    except OSError as error:
        raise AudioError(f"Cannot write {path}: {error.strerror}.") from None
