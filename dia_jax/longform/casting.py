"""From a recording and its transcript to a voice, after checking that the two go together.

Knows what makes a good voice prompt. Uses the model's aligner and codec; knows no scripts and no files but the
recording's.
"""

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from dia_jax.alignment import FRAME_RATE, Alignment
from dia_jax.audio import AudioError
from dia_jax.codec import Codec
from dia_jax.longform import sound
from dia_jax.longform.judge import CLIPPED, UNHEARD
from dia_jax.longform.mastering import edges, level
from dia_jax.requests import AudioPrompt, check_codes, is_recording, read_recording
from dia_jax.voice import Voice, VoiceError

if TYPE_CHECKING:
    from dia_jax.pipeline import Dia

SECONDS = (5.0, 15.0)
"""The shortest and the longest recording. Shorter ones give nonsense; longer ones make speech rush, and leave no
room."""
RATES = (4.0, 30.0)
"""The slowest and the fastest plausible speech in bytes a second; English has 10 to 20."""
DOUBT = 0.92
"""The part of the confidence in the model's own voices below which a transcript is not believed."""
MISSING = 0.25
"""The part of a transcript that may seem to be missing: of another text, most is."""
EDGE = 0.15
"""Seconds of silence that are left at either end."""
STRETCH = 1.2
"""Seconds over which a rate is measured for its spread."""


def make_voice(dia: "Dia", audio: AudioPrompt, text: str, *, name: str = "voice") -> Voice:
    """Makes a voice, see `Dia.make_voice`."""
    text = _transcript(text)
    codec = dia.codec
    if codec is None:
        raise VoiceError("A voice needs the codec, but the model was loaded without (load_codec=False).")
    rate, hop = codec.config.sample_rate, codec.config.hop
    codes = None if is_recording(audio) else check_codes(audio, dia.config)
    samples = read_recording(audio, codec.config) if codes is None else codec.decode(codes)
    first, last = edges(samples, rate=rate)
    seconds = (last - first) / rate
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        raise VoiceError(
            f"The recording holds {seconds:.1f} s of sound; a voice needs {SECONDS[0]:g} to {SECONDS[1]:g} s."
        )
    begin = max(first - round(EDGE * rate), 0) // hop
    end = min(-(-(last + round(EDGE * rate)) // hop), -(-len(samples) // hop))
    clip = samples[begin * hop : end * hop]
    if (clipped := sound.clipped(clip)) > CLIPPED:
        raise VoiceError(f"{100 * clipped:.1f} % of the recording's samples are clipped; record it at a lower level.")
    bytes_a_second = len(text.encode()) / seconds
    if not RATES[0] <= bytes_a_second <= RATES[1]:
        raise VoiceError(
            f"The transcript has {len(text.encode())} bytes for {seconds:.1f} s of sound, {bytes_a_second:.1f} a "
            f"second; speech has {RATES[0]:g} to {RATES[1]:g}. It must be what is said, word for word."
        )
    codes = codec.encode(clip) if codes is None else codes[begin:end]
    alignment = dia.aligner(f"[S1] {text}", codes)
    usual = [voice.confidence for voice in dia.voices.values()]
    _check_transcript(alignment, bytes_a_second, usual, has_own_voices=dia.config.speech.tag_voices)
    return _measured(name, text, codes, clip, alignment, codec, rate=bytes_a_second)


def _measured(
    name: str, text: str, codes: np.ndarray, samples: np.ndarray, alignment: Alignment, codec: Codec, *, rate: float
) -> Voice:
    """A voice with what is measured of its sound and its alignment; `rate` is in bytes a second."""
    hertz = codec.config.sample_rate
    return Voice(
        name=name,
        codes=codes,
        text=text,
        rate=rate,
        rate_spread=_spread(alignment),
        pitch=sound.pitch(samples, rate=hertz).median(),
        level=level(samples, rate=hertz),
        floor=sound.floor(samples, rate=hertz),
        longest_pause=sound.longest_silence(samples, rate=hertz)[1],
        confidence=alignment.confidence,
        codec=codec.digest,
    )


def _transcript(text: str) -> str:
    if not isinstance(text, str):
        raise VoiceError(f"A transcript must be a string, not {type(text).__name__}.")
    text = " ".join(re.sub(r"^\s*\[S[12]\]|\[S[12]\]\s*$", " ", text).split())
    try:
        text.encode()
    except UnicodeEncodeError:
        raise VoiceError("The transcript holds a character that is not valid Unicode; save it as UTF-8.") from None
    if not text:
        raise VoiceError("The transcript is empty; write what is said in the recording, word for word.")
    if re.search(r"\[S[12]\]", text):
        raise VoiceError("The transcript has several speaker tags; a voice is one speaker's.")
    return text


def _check_transcript(alignment: Alignment, rate: float, usual: list[float], *, has_own_voices: bool) -> None:
    """Compares transcript and sound, where the model shows what it reads.

    A model whose attention shows nothing, such as one with random weights, has no say.

    Args:
        alignment: of the recording.
        rate: bytes a second.
        usual: confidences in the voices that the model came with.
        has_own_voices: whether the model was taught voices of its own, and may not follow any other.
    """
    if not alignment.trusted:
        return
    if usual and alignment.confidence < DOUBT * float(np.mean(usual)):
        raise VoiceError(
            f"The transcript and the recording do not go together: the model follows the text with a confidence of "
            f"{alignment.confidence:.2f}, where its own voices have {np.mean(usual):.2f}. It must be what is said, "
            "word for word." + " This model knows its own voices, and follows few others." * has_own_voices
        )
    expected = FRAME_RATE / rate
    missing = [
        span.text
        for span in alignment.spans
        if not span.is_sound
        and alignment.timing(span.start, span.stop).frames < UNHEARD * expected * (span.stop - span.start)
    ]
    if sum(map(len, missing)) > MISSING * len(alignment.text):
        words = " ".join(missing)
        raise VoiceError(
            f'The transcript and the recording differ: "{words if len(words) <= 60 else words[:57] + "..."}" is not '
            "heard. It must be what is said, word for word."
        )


def _spread(alignment: Alignment) -> float:
    """The standard deviation of the rate over stretches of words, as a part of the mean."""
    rates, size, frames = [], 0, 0
    for span in alignment.spans:
        timing = alignment.timing(span.start, span.stop)
        size, frames = size + span.stop - span.start, frames + timing.frames
        if frames >= STRETCH * FRAME_RATE:
            rates.append(size / frames)
            size = frames = 0
    return float(np.std(rates) / np.mean(rates)) if len(rates) > 1 else 0.1


def voice_from_parts(
    dia: "Dia", name: str, parts: list[tuple[str, np.ndarray]], *, longest: float, rate: float
) -> Voice:
    """A voice from what a speaker said in a clip that came out well: its own audio is the prompt of all that follows.

    Args:
        name: of the speaker.
        parts: transcripts, and codes int [T, C], of its turns in order.
        longest: seconds at most; later turns are left out.
        rate: bytes a second that were measured.
    """
    codec = dia.codec
    assert codec is not None
    kept: list[tuple[str, np.ndarray]] = []
    for text, codes in parts:
        if kept and sum(len(c) for _, c in kept) + len(codes) > longest * FRAME_RATE:
            break
        kept.append((text, codes))
    codes = np.concatenate([codes for _, codes in kept])
    text, samples = " ".join(text for text, _ in kept), codec.decode(codes)
    if math.isinf(level(samples, rate=codec.config.sample_rate)):
        raise AudioError(f"Nothing is heard of {name!r} in its first chunk; try another seed.")
    return _measured(name, text, codes, samples, dia.aligner(f"[S1] {text}", codes), codec, rate=rate)
