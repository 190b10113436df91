"""A folder that holds a recording and all that it is made of: killed at any moment, the same command goes on.

    script.txt      as it was handed in (or script.json)
    project.json    the seed, and the turns of each chunk of the last plan
    plan.txt        the chunks with their expected seconds
    voices/         voices that were taken from first chunks
    chunks/         the takes of each chunk, by a digest of what it is made from
    recording.mp3   the recording; with .srt, .vtt and .json beside it, chapters.txt and index.html

Knows which file holds what. Every file appears whole or not at all.
"""

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dia_jax.audio import FORMATS
from dia_jax.config import DiaError, one_line
from dia_jax.files import FileError, new_file, read_text_file
from dia_jax.longform import subtitles
from dia_jax.longform.mastering import check_mastering, write_recording
from dia_jax.longform.page import page
from dia_jax.longform.plan import Chunk
from dia_jax.longform.script import Script, Turn
from dia_jax.longform.speak import Direction, Planned, speak
from dia_jax.longform.speech import Speech
from dia_jax.longform.takes import KeptTakes, Take
from dia_jax.picture import draw_alignment
from dia_jax.requests import VoiceLike
from dia_jax.voice import SUFFIX, Voice, load_voices

if TYPE_CHECKING:
    from dia_jax.pipeline import Dia

STATE = "project.json"
SCRIPT = ("script.txt", "script.json")
MAX_STATE_BYTES = 64 * 2**20


class ProjectError(DiaError):
    """A project folder that cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class _State:
    """What project.json holds: the seed, who says what in each chunk of the last plan, and the chunks' keys."""

    seed: int
    chunks: tuple[tuple[tuple[str, str], ...], ...] = ()
    keys: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def kept(self) -> list[list[Turn]]:
        """The turns of each chunk, as far as `plan.plan` wants to know them."""
        return [[Turn(name, text, text, (), 0.0, 0, 0) for name, text in chunk] for chunk in self.chunks]


def speak_project(
    dia: "Dia",
    script: Script,
    source: str,
    folder: str | os.PathLike,
    *,
    voices: Mapping[str, VoiceLike] | None,
    direction: Direction,
    format: str = "mp3",
    remake: Sequence[int] = (),
    picture: bool = False,
    progress: bool = False,
) -> Speech:
    """Speaks a script into a folder, or goes on where an earlier run was broken off.

    Args:
        dia: the model.
        script: what is to be spoken.
        source: the text that it was read from, to be kept.
        folder: a new folder, an empty one, or one of an earlier run.
        voices: see `Dia.speak`.
        direction: options; without a seed, the earlier run's counts, or a new one is drawn.
        format: of the recording: wav, flac, ogg or mp3.
        remake: numbers of chunks that are made anew, as index.html shows them.
        picture: draw recording.png, with words and turns under the spectrogram.
        progress: show a progress bar.

    Raises:
        ProjectError: the folder cannot be used, or has no such chunk.
        DiaError: see `Dia.speak`.
    """
    folder = Path(folder)
    check_mastering(speed=direction.speed, loudness=direction.loudness, tags=True)
    if f".{format}" not in FORMATS:
        raise ProjectError(f"The format is {format!r}; it must be one of {', '.join(s[1:] for s in FORMATS)}.")
    state = _open(folder)
    state = dataclasses.replace(state, seed=state.seed if direction.seed is None else direction.seed)
    direction = dataclasses.replace(direction, seed=state.seed)
    takes = KeptTakes(folder / "chunks")
    for number in remake:
        if number not in state.keys:
            raise ProjectError(f"{folder} has no chunk {number} to be made anew; its plan.txt numbers them.")
        takes.make_anew(state.keys[number])
    _write(folder / SCRIPT[source.lstrip().startswith("{")], source)

    def note_plan(planned: Planned) -> None:
        nonlocal state
        chunks = tuple(tuple((p.piece.speaker, p.piece.spoken) for p in chunk.parts) for chunk in planned.chunks)
        state = dataclasses.replace(state, chunks=chunks, keys={})
        _write(folder / "plan.txt", plan_table(planned))
        _write(folder / STATE, json.dumps(dataclasses.asdict(state), indent=1))

    def note_chunk(chunk: Chunk, key: str, take: Take) -> None:
        state.keys[chunk.number] = key
        _write(folder / STATE, json.dumps(dataclasses.asdict(state), indent=1))

    def note_voice(name: str, voice: Voice) -> None:
        (folder / "voices").mkdir(exist_ok=True)
        voice.save(folder / "voices" / f"{name}{SUFFIX}")

    own = load_voices(folder / "voices") if (folder / "voices").is_dir() else {}
    speech = speak(
        dia,
        script,
        voices=voices,
        direction=direction,
        takes=takes,
        kept=state.kept,
        own_voices=own,
        on_plan=note_plan,
        on_voice=note_voice,
        on_chunk=note_chunk,
        progress=progress,
    )
    write_speech(folder, speech, format=format, picture=picture)
    return speech


def write_speech(folder: Path, speech: Speech, *, format: str, picture: bool) -> None:
    """Writes a recording with its subtitles, chapters and page."""
    name = f"recording.{format}"
    artist = ", ".join(dict.fromkeys(turn.speaker for turn in speech.turns))
    write_recording(
        folder / name, speech.samples, rate=speech.rate, title=speech.title, chapters=speech.chapters, artist=artist
    )
    _write(folder / "recording.srt", subtitles.srt(speech))
    _write(folder / "recording.vtt", subtitles.vtt(speech))
    _write(folder / "recording.json", subtitles.words_json(speech))
    _write(folder / "chapters.txt", subtitles.chapters_text(speech))
    _write(folder / "index.html", page(speech, audio=name))
    if picture:
        draw_alignment(folder / "recording.png", speech.samples, speech.turns, rate=speech.rate)


def plan_table(planned: Planned) -> str:
    """A plan as text: number, expected time, seconds and text of each chunk."""
    lines, begin = [], 0.0
    for chunk in planned.chunks:
        minutes, seconds = divmod(round(begin), 60)
        said = " ".join(f"[{part.piece.speaker}] {part.piece.text}" for part in chunk.parts)
        lines.append(f"{chunk.number:4}  {minutes:3}:{seconds:02}  {chunk.seconds:5.1f} s  {said}")
        begin += chunk.seconds
    minutes, seconds = divmod(round(begin), 60)
    lines.append(f"{len(planned.chunks)} chunks, about {minutes}:{seconds:02} of speech")
    return "\n".join(lines) + "\n"


def _open(folder: Path) -> _State:
    """The state of an earlier run, or a new one in a new folder."""
    path = folder / STATE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(folder.iterdir()):
                raise ProjectError(f"{folder} holds files and is no project; name a new folder.")
            state = _State(secrets.randbits(32))
            _write(path, json.dumps(dataclasses.asdict(state), indent=1))
            return state
        values = json.loads(read_text_file(path, limit=MAX_STATE_BYTES))
        chunks = tuple(tuple((str(name), str(text)) for name, text in chunk) for chunk in values["chunks"])
        return _State(int(values["seed"]), chunks, {int(number): str(key) for number, key in values["keys"].items()})
    except OSError as error:
        raise ProjectError(f"Cannot use the folder {folder}: {error.strerror}.") from None
    except (FileError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ProjectError):
            raise
        raise ProjectError(
            f"{path} is damaged ({one_line(error)}); remove it, and the takes beside it are found again."
        ) from None


def _write(path: Path, text: str) -> None:
    try:
        with new_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ProjectError(f"Cannot write {path}: {error.strerror}.") from None
