"""The voices that clients can name: the model's own, those of a folder, and those that clients added.

Knows names and files of voices, and how to read an untrusted recording. A name is only ever looked up here; no path
or address from a request is opened.
"""

import dataclasses
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from dia_jax.audio import AudioError, read_audio
from dia_jax.config import short
from dia_jax.longform.casting import SECONDS
from dia_jax.pipeline import SAMPLE_RATE, Dia
from dia_jax.requests import check_voice
from dia_jax.serving.errors import ApiError
from dia_jax.serving.settings import ServingError, Settings
from dia_jax.voice import SUFFIX, TAGS, Voice, VoiceError, load_voices

OPENAI_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
)  # fmt: skip
"""The names that OpenAI's clients send."""

NAME = r"\w(?:[\w .'\-]{0,38}\w)?"
"""What a voice can be called: 1 to 40 letters, digits, spaces, _, -, . and ', at its ends a letter or digit."""

MOST_SECONDS = 4 * SECONDS[1]
"""Of a recording: what is longer is refused when so much was decoded, whatever its header states."""


@dataclasses.dataclass(frozen=True)
class ShelfVoice:
    """A voice by name.

    Attributes:
        tag: of one that the model speaks under this tag without a prompt; "" for others.
        voice: codes and transcript; None where the model has none for its tag.
    """

    name: str
    kind: Literal["model", "file", "uploaded"]
    tag: str = ""
    voice: Voice | None = None

    @property
    def description(self) -> str:
        if self.kind == "model":
            known = (
                "The model's own voice" if self.voice else "A voice that the model makes up; it follows from the seed,"
            )
            return f"{known} for [{self.tag}]."
        assert self.voice is not None
        whose = "Added by a client" if self.kind == "uploaded" else "From the server's folder"
        return f"{whose}; {self.voice.pitch:.0f} Hz."


class Shelf:
    """All voices of a server. Safe to use from several threads.

    Args:
        dia: the model.
        settings: where voices are, and whether clients may add some.

    Raises:
        ServingError, VoiceError: a voice or an alias cannot be used.
    """

    def __init__(self, dia: Dia, settings: Settings):
        self._dia, self._settings = dia, settings
        self._lock = threading.Lock()
        self._adding: set[str] = set()
        self._voices = {tag: ShelfVoice(tag, "model", tag, dia.voices.get(tag)) for tag in TAGS}
        if settings.voices:
            folder = Path(settings.voices)
            for name, voice in load_voices(folder).items():
                self._put(ShelfVoice(name, "file", voice=voice))
            named = [name for name, voice in self._voices.items() if voice.kind == "file"]
            if self._uploads.is_dir():
                for name, voice in load_voices(self._uploads).items():
                    self._put(ShelfVoice(name, "uploaded", voice=voice))
            elif settings.allow_uploads:
                try:
                    self._uploads.mkdir()
                except OSError as error:
                    raise ServingError(f"Cannot make {self._uploads} for uploads: {error.strerror}.") from None
        else:
            named = []
        # Dealt out once, so that no upload changes who answers to "alloy".
        named = named or list(TAGS)
        dealt = {alias: named[i % len(named)] for i, alias in enumerate(OPENAI_VOICES) if alias not in self._voices}
        for alias, name in settings.aliases.items():
            if alias in self._voices:
                raise ServingError(f"The alias {short(alias)} is a voice already; choose another name.")
            if name not in self._voices:
                raise ServingError(f"The alias {short(alias)} is for {short(name)}, but the voices are {self._names}.")
        self.aliases: Mapping[str, str] = {**dealt, **settings.aliases}

    @property
    def voices(self) -> list[ShelfVoice]:
        """All of them, in a stable order."""
        with self._lock:
            return list(self._voices.values())

    def find(self, name: str, *, param: str) -> ShelfVoice:
        """The voice of this name or alias.

        Raises:
            ApiError: 400, there is none.
        """
        with self._lock:
            found = self._voices.get(self.aliases.get(name, name))
            names = self._names
        if found is None:
            raise ApiError(
                400,
                f"There is no voice {short(name)}; there are {names}, and OpenAI's names stand for some of them.",
                param=param,
                code="voice_not_found",
            )
        return found

    def add(self, name: str, recording: bytes, text: str) -> ShelfVoice:
        """Makes a voice of a client's recording, and keeps it.

        Raises:
            ApiError: 400 for the name, 409 if it is taken or there are too many.
            DiaError: recording and transcript cannot be used.
        """
        if not re.fullmatch(NAME, name):
            raise ApiError(
                400,
                f"The name {short(name)} cannot be used; give 1 to 40 letters, digits, spaces, _, -, . or ', with a "
                "letter or digit at both ends.",
                param="name",
                code="invalid_value",
            )
        with self._lock:
            if name in self._voices or name in self.aliases or name in self._adding:
                raise ApiError(409, f"There is a voice {short(name)} already; choose another name.", param="name")
            count = sum(voice.kind == "uploaded" for voice in self._voices.values()) + len(self._adding)
            if count >= self._settings.max_voices:
                raise ApiError(409, f"There are {count} uploaded voices, the most that are kept; delete one first.")
            self._adding.add(name)
        try:
            samples = read_recording(recording)
            voice = self._dia.make_voice((samples, SAMPLE_RATE), text, name=name)
            try:
                voice.save(self._uploads / f"{name}{SUFFIX}")
            except VoiceError as error:  # a full disk, for instance, which is not the client's
                raise ApiError(500, "The voice could not be kept; ask the server's owner.", code="failed") from error
            found = ShelfVoice(name, "uploaded", voice=voice)
            with self._lock:
                self._voices[name] = found
        finally:
            with self._lock:
                self._adding.discard(name)
        return found

    def remove(self, name: str) -> None:
        """Deletes a voice that a client added.

        Raises:
            ApiError: 404 where there is none, 403 where it is the server's.
        """
        with self._lock:
            found = self._voices.get(name)
            if found is None:
                raise ApiError(404, f"There is no voice {short(name)}.", code="voice_not_found")
            if found.kind != "uploaded":
                raise ApiError(403, f"The voice {short(name)} is the server's own, and cannot be deleted.")
            (self._uploads / f"{name}{SUFFIX}").unlink(missing_ok=True)
            del self._voices[name]

    def _put(self, voice: ShelfVoice) -> None:
        assert voice.voice is not None
        check_voice(voice.voice, codec=self._dia.codec.digest if self._dia.codec else "")
        if voice.name in self._voices:
            raise ServingError(f"There are two voices {short(voice.name)}; rename one of the files.")
        self._voices[voice.name] = voice

    @property
    def _uploads(self) -> Path:
        return Path(self._settings.voices) / "uploaded"

    @property
    def _names(self) -> str:
        names = list(self._voices)
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        return ", ".join(map(short, names[:20])) + more


def read_recording(data: bytes) -> np.ndarray:
    """An untrusted recording -> float32 samples [n] at 44.1 kHz.

    Raises:
        AudioError: it is no sound file that libsndfile reads, or longer than `MOST_SECONDS`.
    """
    handle, name = tempfile.mkstemp(prefix="dia_jax-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        return read_audio(name, rate=SAMPLE_RATE, max_seconds=MOST_SECONDS)
    except AudioError as error:
        raise AudioError(str(error).replace(name, "The recording")) from None
    finally:
        Path(name).unlink()
