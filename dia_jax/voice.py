"""A voice that stays: codes and transcript of a recording, with what was measured of it, in one file.

Knows numpy, safetensors and where voices are kept. Knows no model and no sound: `longform.casting` makes voices from
recordings, and `requests` puts them before a script.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from dia_jax.config import DiaError, one_line, short
from dia_jax.files import new_file
from dia_jax.hub import UNREACHABLE
from dia_jax.outputs import follow_links

SUFFIX = ".voice"
FORMAT = "dia_jax voice 1"
TAGS = ("S1", "S2")
MAX_BYTES = 1 << 20
"""The largest file that is read: a minute of codes has 93 kB."""


class VoiceError(DiaError):
    """A voice that cannot be made, read or used; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Voice:
    """A voice to speak with.

    Attributes:
        name: for messages and as a file name.
        codes: int32 [P, C] of the recording.
        text: its transcript, without speaker tags.
        rate: bytes of transcript a second.
        rate_spread: standard deviation of the rate over stretches of some words, as a part of the rate.
        pitch: median in Hz; NaN where there is none, as in a whisper.
        level: active level in dBFS, see `longform.mastering.level`.
        floor: how far below the level its quietest parts lie, in dB, see `longform.sound.floor`.
        longest_pause: seconds of the longest silence between two words.
        confidence: that of the recording's own alignment, see `alignment.Alignment`; what to expect of clips.
        codec: digest of the codec that made the codes, see `Codec.digest`.
    """

    name: str
    codes: np.ndarray
    text: str
    rate: float
    rate_spread: float
    pitch: float
    level: float
    floor: float
    longest_pause: float
    confidence: float
    codec: str

    def __post_init__(self):
        problems = []
        if not isinstance(self.name, str) or not re.fullmatch(r"[^\x00-\x1f/\\]{1,80}", self.name):
            problems.append(f"its name is {short(self.name)}; it must be 1 to 80 characters without slashes")
        codes = self.codes
        if not isinstance(codes, np.ndarray) or codes.ndim != 2 or codes.dtype.kind not in "iu" or not codes.size:
            problems.append("its codes are no integer array [frames, channels]")
        if not isinstance(self.text, str) or not self.text.strip() or "[S1]" in self.text or "[S2]" in self.text:
            problems.append("its transcript is empty or holds speaker tags")
        for name in ("rate", "rate_spread", "level", "floor", "longest_pause", "confidence"):
            value = getattr(self, name)
            if not isinstance(value, float) or not math.isfinite(value):
                problems.append(f"its {name} is {short(value)}; it must be a number")
        if isinstance(self.rate, float) and self.rate <= 0:
            problems.append(f"its rate is {self.rate:g}; it must be above 0")
        if problems:
            raise VoiceError(f"This is no usable voice: {'; '.join(problems)}.")
        object.__setattr__(self, "codes", np.asarray(codes, np.int32))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the voice as a safetensors file, which appears whole or not at all."""
        path = Path(path)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "codes"}
        metadata = {"format": FORMAT, "voice": json.dumps(values)}
        try:
            with new_file(follow_links(path)) as temporary:
                temporary.write_bytes(safetensors.numpy.save({"codes": self.codes.astype(np.int16)}, metadata))
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            raise VoiceError(f"Cannot write {path}: {reason}.") from None

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Voice":
        """Reads a voice.

        Args:
            path: a file that `save` wrote, or "owner/name/file.voice" in a hub repo.

        Raises:
            VoiceError: it cannot be had, or is no voice.
        """
        file = _resolve(path)
        try:
            if file.stat().st_size > MAX_BYTES:
                raise VoiceError(f"{file} is larger than {MAX_BYTES:,} bytes; it is no voice.")
            with safe_open(file, framework="numpy") as tensors:
                metadata = tensors.metadata() or {}
                codes = tensors.get_tensor("codes") if "codes" in tensors.keys() else None  # noqa: SIM118
        except OSError as error:
            raise VoiceError(f"Cannot read the voice {file}: {error.strerror or one_line(error)}.") from None
        except (SafetensorError, ValueError, TypeError) as error:
            if isinstance(error, VoiceError):
                raise
            raise VoiceError(f"{file} is no voice ({one_line(error)}); make one with: dia-jax voice") from None
        if metadata.get("format") != FORMAT or codes is None:
            raise VoiceError(f'{file} is no voice of the form "{FORMAT}"; make one with: dia-jax voice')
        try:
            values = json.loads(metadata["voice"])
            return cls(codes=codes, **values)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise VoiceError(f"{file} is a damaged voice: {one_line(error)}.") from None


def _resolve(name: str | os.PathLike) -> Path:
    path = Path(name)
    parts = os.fspath(name).split("/")
    if path.exists() or len(parts) < 3 or path.is_absolute() or parts[0].startswith("."):
        return path
    try:
        return Path(huggingface_hub.hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except (*UNREACHABLE, OSError, ValueError) as error:
        raise VoiceError(f"There is no file {path}, and on the hub it cannot be had ({one_line(error)}).") from None


def load_voices(folder: str | os.PathLike) -> dict[str, Voice]:
    """All voices of a folder, by file name without ".voice".

    Raises:
        VoiceError: it is no folder, or a voice in it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VoiceError(f"{folder} is no folder of voices.")
    return {file.stem: Voice.load(file) for file in sorted(folder.glob(f"*{SUFFIX}"))}


def as_voice(voice: Any) -> Voice:
    """A voice, or the path of one."""
    if isinstance(voice, Voice):
        return voice
    if isinstance(voice, (str, os.PathLike)):
        return Voice.load(voice)
    raise VoiceError(f"A voice must be a Voice or the path of one, not {type(voice).__name__}.")


def voice_prompt(voices: Mapping[str, Voice]) -> tuple[str, np.ndarray]:
    """What stands before a script so that it is spoken in these voices.

    Args:
        voices: by tag, "S1" or "S2", one or both.

    Returns:
        the transcripts with their tags, and the codes, int32 [P, C].
    """
    text = " ".join(f"[{tag}] {voice.text.strip()}" for tag, voice in voices.items())
    return text, np.concatenate([voice.codes for voice in voices.values()])
