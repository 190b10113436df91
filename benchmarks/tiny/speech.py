"""The teacher of the small voice: words to speech whose codec frames repeat.

hibari-tts (Apache-2.0, weights inside the package) says how long each phoneme is and how a spectral envelope moves,
80 frames a second: one for the voiced part, one for the breath. The waveform is made here and not by it, locked to
the codec: a word is stretched to a whole number of its frames, the pitch is a whole multiple of the frame rate (86.13
Hz), and the breath has the same lines as the voice, with the same phases: a frame is told by its envelope alone, and at
other lines Praat would hear another pitch. And it is the same wherever the word stands, with a short silence behind. So
what has to be learnt of speech is small. It sounds monotonous, and whisper understands it.

Knows no model; needs hibari-tts, onnx and numpy (requirements.txt).
"""

import dataclasses
import functools
import itertools
from pathlib import Path

import hibari
import numpy as np
import onnx
import onnxruntime

RATE, HOP = 44_100, 512
FRAME_RATE = RATE / HOP
WINDOW = 2048
TEACHER_BIN = 20.0  # Hz between the teacher's 601 bins
TEACHER_WINDOW = 1200
HIGHEST = 8000  # Hz
BANDS = 32  # of an envelope, equally wide in mel: fewer directions in which sound can vary, and clearer speech
LOUDNESS = 0.05  # root mean square of every voice
FRAMES_PER_BYTE = 6
"""Every byte of a script lasts as long as any other: what is being read follows from what has been said, by counting.
The teacher's own pace is 4 to 5."""
GAP = 2  # silent frames at a word's end
EARLY = 7  # frames of the teacher by which a word is heard before the frame in which it begins
MARKS = ".,?!"
LONGEST = 192  # frames of a word
SILENT = -20.0  # log magnitude
PULSES = 2500  # Hz up to which the lines of a voice are in phase


@dataclasses.dataclass(frozen=True)
class Voice:
    """A pitch in frame rates and a stretch of the formants."""

    name: str
    pulses: float
    warp: float

    @property
    def pitch(self) -> float:
        """In Hz."""
        return self.pulses * FRAME_RATE


VOICES = {
    "alto": Voice("alto", 2, 1.0),
    "bass": Voice("bass", 1, 0.93),
}
"""alto speaks [S1] and bass [S2] where no prompt says otherwise."""


@dataclasses.dataclass(frozen=True)
class Envelopes:
    """What the teacher says of a word.

    Attributes:
        voiced, breath: log magnitudes [601, T].
        pitched: [T], 1 where there is a pitch.
    """

    voiced: np.ndarray
    breath: np.ndarray
    pitched: np.ndarray


@functools.cache
def _teacher() -> tuple[hibari.Hibari, onnxruntime.InferenceSession]:
    tts = hibari.Hibari()
    model = onnx.load(Path(tts.model_path))
    rounded = next(node for node in model.graph.node if node.op_type == "Round").output[0]
    durations = next(node for node in model.graph.node if node.op_type == "Clip" and rounded in node.input).output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(durations, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return tts, onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@functools.cache
def envelopes(word: str) -> Envelopes:
    """Asks the teacher for a word by itself, and stretches it to `FRAMES_PER_BYTE` for its bytes and the space behind.

    Args:
        word: ASCII letters.
    """
    tts, session = _teacher()
    phonemes = tts.phonemize(f"{word}.")[0]
    ids = np.asarray([tts.ids(phonemes)], np.int64)
    outputs = session.run(None, {"ids": ids, "speed": np.asarray([1.0], np.float32)})
    voiced, _, noise, rough, _, pitch = (part[0] for part in outputs[:-1])
    each = 2 * outputs[-1].reshape(-1).astype(int)  # frames of a phoneme: the teacher counts pairs
    breath = np.logaddexp(2 * np.minimum(noise, 7), 2 * np.minimum(rough, 7) - np.log(2)) / 2
    edges = np.concatenate([[0], np.cumsum(each)])  # edges[i] begins id i; id 0 is a pause, the last one the full stop
    frames = FRAMES_PER_BYTE * (len(word) + 1) - GAP
    begin, end = edges[1] - EARLY, edges[len(phonemes)]
    at = np.clip(begin + (end - begin) * (np.arange(frames) + 0.5) / frames - 0.5, 0, voiced.shape[1] - 1.001)
    left = at.astype(int)

    def stretched(log: np.ndarray) -> np.ndarray:
        between = log[:, left] * (1 - at + left) + log[:, left + 1] * (at - left)
        return np.pad(_smooth(between), ((0, 0), (0, GAP)), constant_values=SILENT)

    pitched = np.pad((pitch > 40)[at.round().astype(int)], (0, GAP))
    return Envelopes(stretched(np.minimum(voiced, 7)), stretched(breath), pitched.astype(np.float32))


def _smooth(log: np.ndarray) -> np.ndarray:
    """Means over mel bands, joined by straight lines: [601, T] in and out."""
    mel = np.linspace(0, np.log10(1 + HIGHEST / 700), BANDS + 1)[1:]
    centres, bins = 700 * (10**mel - 1) / TEACHER_BIN, np.arange(len(log))
    edges = np.concatenate([[0], (centres[1:] + centres[:-1]) / 2, [centres[-1] + 1]])
    means = [
        log[int(np.ceil(low)) : max(int(np.ceil(high)), int(np.ceil(low)) + 1)].mean(axis=0)
        for low, high in itertools.pairwise(edges)
    ]
    left = np.clip(np.searchsorted(centres, bins, side="right") - 1, 0, BANDS - 2)
    part = np.clip((bins - centres[left]) / (centres[left + 1] - centres[left]), 0, 1)[:, None]
    return np.stack(means)[left] * (1 - part) + np.stack(means)[left + 1] * part


def speak(parts: Envelopes, voice: Voice, loudness: float = LOUDNESS) -> np.ndarray:
    """Envelopes to samples, float32 [T * 512] at 44.1 kHz: T hops in, T hops out."""
    frames = parts.voiced.shape[1]
    window = _window()
    bins = np.arange(WINDOW // 2 + 1) * RATE / WINDOW / voice.warp / TEACHER_BIN
    low = np.minimum(bins.astype(int), 599)
    part = np.minimum(bins - low, 1.0)[:, None]
    heard = (np.arange(WINDOW // 2 + 1) * RATE / WINDOW < HIGHEST)[:, None]

    def magnitudes(log: np.ndarray) -> np.ndarray:
        return np.where(heard, np.exp(log[low] * (1 - part) + log[low + 1] * part), 0)

    # As loud as noise of variance 1 would be, through the window of the teacher's analysis.
    hiss = np.sqrt(4 * voice.pitch / RATE * 2 / np.sum(window**2) * TEACHER_WINDOW / WINDOW)
    envelope = magnitudes(parts.voiced) * parts.pitched / (WINDOW / 4) + magnitudes(parts.breath) * hiss
    spectrum = envelope * _spectra(voice.pitch)[:, :frames]
    pieces = np.fft.irfft(spectrum.T) * window
    out = np.zeros(frames * HOP + WINDOW)
    for i, piece in enumerate(pieces):
        out[i * HOP : i * HOP + WINDOW] += piece
    out = out[WINDOW // 2 : WINDOW // 2 + frames * HOP]
    return (out * loudness / max(float(np.sqrt(np.mean(out**2))), 1e-9)).clip(-0.99, 0.99).astype(np.float32)


def sounds() -> dict[str, np.ndarray]:
    """The non-verbal sounds, made of the same cloth: whole periods or the same noise in every frame.

    Each is as long as its name in brackets and the space behind it: a little silence, the sound, and silence.
    """

    def faded(tone: np.ndarray, fade: int = 2) -> np.ndarray:
        ramp = np.minimum(1, np.arange(len(tone)) / (fade * HOP))
        return tone * ramp * ramp[::-1]

    def tone(multiples: np.ndarray) -> np.ndarray:
        return np.sin(2 * np.pi * np.cumsum(np.repeat(multiples, HOP)) / HOP)

    noise = np.random.default_rng(1).standard_normal(HOP)
    bright = np.diff(noise, append=noise[:1])
    clap = np.concatenate([bright * np.exp(-np.arange(HOP) / 150), np.zeros(9 * HOP)])
    whistle = np.round(18 + 10 * np.sin(np.pi * np.repeat(np.arange(11), 4) / 11))
    made = {
        "beep": faded(tone(np.full(26, 10.0))),
        "claps": np.tile(clap, 3),
        "whistles": faded(tone(whistle), 6),
    }
    padded = {}
    for name, x in made.items():
        spare = FRAMES_PER_BYTE * len(f"({name}) ") - len(x) // HOP
        loud = x * LOUDNESS / np.sqrt(np.mean(x**2))
        padded[name] = np.pad(loud, (3 * HOP, (spare - 3) * HOP)).astype(np.float32)
    return padded


def _window() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@functools.cache
def _spectra(pitch: float) -> np.ndarray:
    """Of the lines at a pitch, in every frame of the longest word: [WINDOW / 2 + 1, LONGEST].

    Every frame sees the same stretch of them where the pitch is a whole number of frame rates.
    """
    lines = _lines(pitch, LONGEST * HOP + WINDOW)
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(lines, WINDOW)[: LONGEST * HOP : HOP] * _window()).T


def _lines(pitch: float, length: int) -> np.ndarray:
    """Unit cosines at every multiple of the pitch up to `HIGHEST`: pulses below `PULSES`, a hiss above it.

    The phase is that of the nearest multiple of the frame rate.
    """
    frequencies = np.arange(1, int(HIGHEST / pitch) + 1) * pitch
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, int(HIGHEST / FRAME_RATE) + 2)
    phases = np.where(frequencies > PULSES, phases[(frequencies / FRAME_RATE).round().astype(int)], 0)
    whole = abs(pitch / FRAME_RATE - round(pitch / FRAME_RATE)) < 1e-6
    time = np.arange(HOP if whole else length) / RATE
    return np.resize(np.cos(2 * np.pi * frequencies[:, None] * time + phases[:, None]).sum(axis=0), length)
