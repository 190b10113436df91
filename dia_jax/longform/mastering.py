"""The last steps of a recording: edges, levels, tempo, loudness, and a sound file with its title and chapters.

Knows mono samples and sound files. Knows no model and no script. Tempo, loudness and tags need the extra `long`.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from dia_jax.audio import AudioError, write_audio
from dia_jax.config import DiaError, one_line, short
from dia_jax.longform.speech import SpokenChapter, name_chapters

SPEEDS = (0.25, 4.0)
"""The slowest and the fastest tempo. Below 0.7 speech is smeared, and above 1.4 swallowed."""
LOUDNESS = (-60.0, -5.0)
"""The lowest and the highest loudness, in LUFS. -16 is usual for podcasts in mono or stereo."""
HIGHEST_PEAK = -1.0
"""What a true peak stays below, in dBFS: room for what .mp3 and .ogg add to it."""
ACTIVE_MARGIN = 15.9
"""How far below the level of speech its quietest part lies, in dB (ITU-T P.56)."""
GATING_BLOCK = 0.4
"""What a loudness is measured over, in seconds (ITU-R BS.1770)."""


class MasteringError(DiaError):
    """A setting that cannot be used, or a library that is missing; the message says which."""


def check_mastering(*, speed: float = 1.0, loudness: float | None = None, tags: bool = False) -> None:
    """Finds out, before any work is done, whether a recording can be finished so.

    Args:
        speed: as `stretch` takes it.
        loudness: as `normalise` takes it; None leaves it as it is.
        tags: whether `write_recording` has a title, an artist or chapters to write.

    Raises:
        MasteringError: a number is out of its range, or a library is missing.
    """
    _check_number("speed", speed, SPEEDS, "1 is the speed of the voice")
    if speed != 1:
        _stretcher()
    if loudness is not None:
        _check_number("loudness", loudness, LOUDNESS, "in LUFS; -16 is usual for podcasts")
        _meter()
    if tags:
        _mutagen()


def _check_number(name: str, value: Any, limits: tuple[float, float], remark: str) -> None:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not limits[0] <= value <= limits[1]:
        raise MasteringError(f"{name}={short(value)} must be from {limits[0]:g} to {limits[1]:g} ({remark}).")


# --- Levels and edges ------------------------------------------------------------------------------------------------


def level(samples: np.ndarray, *, rate: int) -> float:
    """The level of speech while it sounds, so that pauses do not count.

    This is the active speech level of ITU-T P.56 (method B): the mean power of the parts that lie above a threshold
    15.9 dB below that mean power itself. Here the parts are frames of 20 ms, in place of an envelope with a hangover.

    Args:
        samples: float [n].
        rate: the sample rate in Hz.

    Returns:
        dBFS, where a full square wave has 0; minus infinity for silence.
    """
    power = frame_power(samples, size=round(0.02 * rate))
    active = power[power > 0]
    if not len(active):
        return -math.inf
    # The mean rises with each frame that is left out, so this ends with the last frame below the threshold.
    while len(kept := active[active >= active.mean() * 10 ** (-ACTIVE_MARGIN / 10)]) < len(active):
        active = kept
    return 10 * math.log10(active.mean())


def edges(samples: np.ndarray, *, rate: int, below_level: float = 40.0, lowest_level: float = -60.0) -> tuple[int, int]:
    """Where the sound of a clip begins and ends, to 5 ms.

    Args:
        samples: float [n].
        rate: the sample rate in Hz.
        below_level: how far below its active level, in dB, a clip is taken for silent.
        lowest_level: what is taken for silent in any clip, in dBFS.

    Returns:
        the first sample of sound, and that behind the last; `samples[first:last]` is the sound. (0, 0) for silence.
    """
    size = round(0.005 * rate)
    power = frame_power(samples, size=size)
    threshold = max(level(samples, rate=rate) - below_level, lowest_level)
    heard = np.flatnonzero(power > 10 ** (threshold / 10))
    if not len(heard):
        return 0, 0
    return int(heard[0]) * size, min((int(heard[-1]) + 1) * size, len(samples))


def frame_power(samples: np.ndarray, *, size: int) -> np.ndarray:
    """Mean power [frames] of consecutive frames; the last one may be shorter."""
    whole = len(samples) // size * size
    frames = samples[:whole].reshape(-1, size)
    power = np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / size
    rest = samples[whole:].astype(np.float64)
    return np.append(power, (rest**2).mean()) if len(rest) else power


def fade(samples: np.ndarray, *, rate: int, milliseconds: float) -> np.ndarray:
    """A copy that rises from silence and falls to it along half a period of a cosine.

    Args:
        samples: float [n].
        rate: the sample rate in Hz.
        milliseconds: the length of each fade; in a clip shorter than two of them, each takes half.
    """
    length = min(round(milliseconds / 1000 * rate), len(samples) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / max(length, 1))).astype(np.float32)
    faded = np.array(samples, np.float32)
    faded[:length] *= ramp
    faded[len(faded) - length :] *= ramp[::-1]
    return faded


# --- Tempo -----------------------------------------------------------------------------------------------------------


def stretch(samples: np.ndarray, *, rate: int, speed: float) -> np.ndarray:
    """Speaks faster or slower at the same pitch. What was at time t is then at t / speed.

    Args:
        samples: float32 [n].
        rate: the sample rate in Hz.
        speed: 0.25 to 4; 1 returns the samples as they are.

    Returns:
        float32 [round(n / speed)].

    Raises:
        MasteringError: the speed is out of its range, or python-stretch is missing.
    """
    _check_number("speed", speed, SPEEDS, "1 is the speed of the voice")
    if speed == 1:
        return samples
    stretcher = _stretcher()(0)
    # A block holds seven periods of a low voice; longer ones blur consonants, shorter ones make low voices rough.
    stretcher.configure(1, round(0.08 * rate), round(0.02 * rate))
    stretcher.setTimeFactor(speed)
    # The library compensates its latency. What sounds in the end comes out with the silence that follows it.
    silence = stretcher.inputLatency() + math.ceil(speed * stretcher.outputLatency()) + stretcher.blockSamples()
    stretched = stretcher.process(np.pad(samples.astype(np.float32, copy=False), (0, silence))[None])
    return np.array(stretched[0, : round(len(samples) / speed)])


def _stretcher() -> Any:
    try:
        from python_stretch import Signalsmith
    except ImportError:
        raise _missing("speed= needs python-stretch") from None
    return Signalsmith.Stretch


# --- Loudness --------------------------------------------------------------------------------------------------------


def normalise(samples: np.ndarray, *, rate: int, loudness: float) -> tuple[np.ndarray, float]:
    """Gives a recording a loudness, by one gain for all of it.

    A gain that would lift the true peak above -1 dBFS is lowered until it does not, so the result can be less loud
    than asked for. Nothing is limited or compressed. A clip shorter than the 0.4 s that a loudness is measured over
    is measured as if it were repeated. Silence, that is below -70 LUFS throughout, stays as it is.

    Args:
        samples: float32 [n].
        rate: the sample rate in Hz.
        loudness: integrated loudness by ITU-R BS.1770-4, in LUFS: -60 to -5.

    Returns:
        float32 [n], and the loudness that it has: minus infinity for silence.

    Raises:
        MasteringError: the loudness is out of its range, or pyloudnorm is missing.
    """
    _check_number("loudness", loudness, LOUDNESS, "in LUFS; -16 is usual for podcasts")
    found = _loudness(samples, rate=rate)
    if math.isinf(found):
        return samples, found
    gain = min(loudness - found, HIGHEST_PEAK - true_peak(samples, rate=rate))
    return (samples * np.float32(10 ** (gain / 20))).astype(np.float32, copy=False), found + gain


def _loudness(samples: np.ndarray, *, rate: int) -> float:
    """Integrated loudness in LUFS; minus infinity for silence."""
    meter = _meter()(rate)
    if not samples.any():
        return -math.inf
    shortest = math.ceil(GATING_BLOCK * rate)
    samples = samples.astype(np.float64)
    return float(meter.integrated_loudness(np.resize(samples, shortest) if len(samples) < shortest else samples))


def true_peak(samples: np.ndarray, *, rate: int) -> float:
    """The highest level of the wave between the samples too, at four times their rate (ITU-R BS.1770-4, annex 2).

    Returns:
        dBFS; minus infinity for silence.
    """
    resampler = soxr.ResampleStream(rate, 4 * rate, 1, dtype="float32")
    highest = float(np.abs(samples).max(initial=0.0))
    for start in range(0, len(samples), rate):
        last = start + rate >= len(samples)
        block = resampler.resample_chunk(samples[start : start + rate].astype(np.float32, copy=False), last=last)
        highest = max(highest, float(np.abs(block).max(initial=0.0)))
    return 20 * math.log10(highest) if highest > 0 else -math.inf


def _meter() -> Any:
    try:
        from pyloudnorm import Meter
    except ImportError:
        raise _missing("loudness= needs pyloudnorm") from None
    return Meter


# --- The sound file --------------------------------------------------------------------------------------------------


def write_recording(
    path: str | os.PathLike,
    samples: np.ndarray,
    *,
    rate: int,
    title: str = "",
    chapters: Sequence[SpokenChapter] = (),
    artist: str = "",
) -> None:
    """Writes a sound file as `audio.write_audio` does, with title, artist and chapters as tags.

    .mp3 and .wav have ID3 frames (TIT2, TPE1, and CTOC with CHAP for the chapters); .flac and .ogg have Vorbis comments
    (TITLE, ARTIST, and CHAPTER001 with CHAPTER001NAME). Podcast players read these. With nothing to say, no tag is
    written, and mutagen is not needed.

    Args:
        path: of the file, which appears whole, with its tags, or not at all.
        samples: float [n]; values outside -1 .. 1 are clipped.
        rate: the sample rate in Hz.
        chapters: in order. Each ends where the next begins.

    Raises:
        AudioError: see `write_audio`; or the tags cannot be written.
        MasteringError: mutagen is missing.
    """
    path = Path(path)
    title, artist, chapters = " ".join(title.split()), " ".join(artist.split()), name_chapters(chapters)
    if not (title or artist or chapters):
        write_audio(path, samples, rate=rate)
        return
    mutagen = _mutagen()
    kind, seconds = path.suffix.lower(), len(samples) / rate

    def tag(file: Path) -> None:
        try:
            if kind in (".mp3", ".wav"):
                _write_id3(file, kind, title=title, artist=artist, chapters=chapters, seconds=seconds)
            else:
                _write_comments(file, kind, title=title, artist=artist, chapters=chapters)
        except mutagen.MutagenError as error:
            raise AudioError(f"Cannot write title and chapters into {path}: {one_line(error)}.") from None

    write_audio(path, samples, rate=rate, tag=tag)


def _write_id3(
    file: Path, kind: str, *, title: str, artist: str, chapters: Sequence[SpokenChapter], seconds: float
) -> None:
    from mutagen import id3
    from mutagen.mp3 import MP3
    from mutagen.wave import WAVE

    recording: Any = MP3(file) if kind == ".mp3" else WAVE(file)
    recording.add_tags()
    if title:
        recording.tags.add(id3.TIT2(encoding=id3.Encoding.UTF8, text=title))
    if artist:
        recording.tags.add(id3.TPE1(encoding=id3.Encoding.UTF8, text=artist))
    names = [f"chp{number}" for number in range(len(chapters))]
    if chapters:
        flags = id3.CTOCFlags.TOP_LEVEL | id3.CTOCFlags.ORDERED
        recording.tags.add(id3.CTOC(element_id="toc", flags=flags, child_element_ids=names))
    unused = 2**32 - 1  # by the standard: no offset in bytes is given
    ends = [*(chapter.start for chapter in chapters), seconds][1:]
    for name, chapter, end in zip(names, chapters, ends, strict=True):
        recording.tags.add(
            id3.CHAP(
                element_id=name,
                start_time=_milliseconds(chapter.start),
                end_time=max(_milliseconds(end), _milliseconds(chapter.start)),
                start_offset=unused,
                end_offset=unused,
                sub_frames=[id3.TIT2(encoding=id3.Encoding.UTF8, text=chapter.title)],
            )
        )
    recording.save(v2_version=3)  # the one that Windows shows


def _write_comments(file: Path, kind: str, *, title: str, artist: str, chapters: Sequence[SpokenChapter]) -> None:
    from mutagen.flac import FLAC
    from mutagen.oggvorbis import OggVorbis

    recording = FLAC(file) if kind == ".flac" else OggVorbis(file)
    if title:
        recording["TITLE"] = title
    if artist:
        recording["ARTIST"] = artist
    for number, chapter in enumerate(chapters, 1):
        time = _milliseconds(chapter.start)
        minutes, seconds = divmod(time / 1000, 60)
        recording[f"CHAPTER{number:03}"] = f"{int(minutes) // 60:02}:{int(minutes) % 60:02}:{seconds:06.3f}"
        recording[f"CHAPTER{number:03}NAME"] = chapter.title
    recording.save()


def _milliseconds(seconds: float) -> int:
    return max(round(1000 * seconds), 0)


def _mutagen() -> Any:
    try:
        import mutagen
    except ImportError:
        raise _missing("A sound file with title and chapters needs mutagen") from None
    return mutagen


def _missing(need: str) -> MasteringError:
    return MasteringError(f"{need}: pip install 'dia_jax[long]'.")
