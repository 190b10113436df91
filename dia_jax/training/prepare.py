"""Recordings and transcripts -> codes on disk.

A prepared folder holds

    codes.bin       int16 [frames, C], the clips one after another
    items.jsonl     one JSON object per clip: its text, its voice, and where its codes are
    dataset.json    the codec that made the codes: its config, and a digest of its encoder's weights
    refused.jsonl   the recordings that were not used, each with the reason

A clip counts once its line is complete and its codes are on disk, so that preparation resumes after a kill. Knows
files, text and the codec; of the model only its limits.
"""

import dataclasses
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dia_jax.audio import read_audio
from dia_jax.checkpoint import dac_from_json, dac_to_json
from dia_jax.codec import Codec
from dia_jax.config import ConfigError, DacConfig, DiaConfig, DiaError
from dia_jax.files import read_json, visible, write_whole
from dia_jax.text import encode_text
from dia_jax.training.settings import DataError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".opus")


@dataclasses.dataclass(frozen=True)
class Item:
    """A clip of a prepared folder; its fields are those of a line of `items.jsonl`.

    Attributes:
        text: the script.
        first, frames: position and number of its codes in `codes.bin`, in frames.
        voice: the speaker, if known.
        source: absolute path of the recording.
        prompt: frames at the beginning that are a voice prompt: given to the model and left out of the loss.
        starts: for each byte of the encoded script the frame at which it is first heard, if known.
    """

    text: str
    first: int
    frames: int
    voice: str | None = None
    source: str | None = None
    prompt: int = 0
    starts: tuple[int, ...] | None = None


class Writer:
    """Appends clips to a prepared folder, new or existing; a context manager.

    Args:
        folder: path of the folder.
        codec: config of the codec that decodes the codes.
        encoder: the `Codec.digest` of the codec, if its encoder makes the codes.

    Raises:
        DataError: the folder holds other files, is damaged, or has codes of another codec.
    """

    def __init__(self, folder: str | os.PathLike, codec: DacConfig, encoder: str | None = None):
        self.folder, self.codec = Path(folder), codec
        lines, codes = self.folder / "items.jsonl", self.folder / "codes.bin"
        header = {"codec": dac_to_json(codec), "encoder": encoder}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "dataset.json").exists():
                if visible(self.folder):
                    raise DataError(f"{folder} is not empty and holds no prepared data; name a new folder.")
                write_whole(self.folder / "dataset.json", json.dumps(header, indent=2) + "\n")
            *made_by, items = read_folder(self.folder)
            if made_by != [codec, encoder]:
                raise DataError(f"{folder} was prepared with another codec; name a new folder.")
            # Whatever follows the last complete clip was being written when an earlier run was killed.
            available = codes.stat().st_size // (codec.num_codebooks * 2) if codes.exists() else 0
            self.items = list(itertools.takewhile(lambda item: item.first + item.frames <= available, items))
            self.frames = self.items[-1].first + self.items[-1].frames if self.items else 0
            complete = "".join(map(_to_line, self.items))
            if not lines.exists() or lines.read_text(encoding="utf-8") != complete:
                write_whole(lines, complete)
            self._codes = open(codes, "ab")  # noqa: SIM115 (closed by __exit__)
            self._codes.truncate(self.frames * codec.num_codebooks * 2)
            self._lines = open(lines, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"Cannot write {folder}: {error.strerror}.") from None

    def add(self, codes: np.ndarray, text: str, **fields: Any) -> None:
        """Appends one clip.

        Args:
            codes: int [T, C].
            text: the script.
            **fields: further fields of `Item`.
        """
        item = Item(text, self.frames, len(codes), **fields)
        self._codes.write(np.ascontiguousarray(codes, np.int16).tobytes())
        self._codes.flush()
        self._lines.write(_to_line(item))
        self._lines.flush()
        self.frames += len(codes)
        self.items.append(item)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._codes.close()
        self._lines.close()


def _to_line(item: Item) -> str:
    return json.dumps({name: value for name, value in dataclasses.asdict(item).items() if value is not None}) + "\n"


def read_folder(folder: Path) -> tuple[DacConfig, str | None, list[Item]]:
    """Reads what a prepared folder holds besides the codes.

    Returns:
        the codec's config, its `Codec.digest` if known, and the clips whose lines are complete.

    Raises:
        DataError: the folder is damaged.
    """
    path, items = folder / "items.jsonl", []
    try:
        header = read_json(folder / "dataset.json")
        codec = dac_from_json(header.get("codec"))
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
            if line.endswith("\n"):
                fields = json.loads(line)
                starts = fields.get("starts")
                items.append(Item(**fields | {"starts": None if starts is None else tuple(starts)}))
    except (ConfigError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{folder} is damaged ({error}); prepare into a new folder.") from None
    return codec, header.get("encoder"), items


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of `prepare`.

    Attributes:
        kept: number of clips in the folder.
        seconds: their total duration.
        refused: path and reason of each recording that is not in the folder.
    """

    kept: int
    seconds: float
    refused: list[tuple[str, str]]


def read_manifest(source: str | os.PathLike) -> list[dict[str, Any]]:
    """Lists the clips of a manifest or a folder.

    Args:
        source: a JSONL file whose lines have "path" (relative to the file) and "text", and may have "voice"; or a
            folder of audio files, each with a transcript of the same name that ends in .txt.

    Returns:
        for each clip a dictionary with "path", "text" (None if there is no readable transcript) and, if given, "voice".

    Raises:
        DataError: the source is neither, or has no clip.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        clips: list[dict[str, Any]] = []
        for path in found:
            try:
                text = _read_text(path.with_suffix(".txt")).strip()
            except OSError:  # missing, or not readable
                text = None
            clips.append({"path": str(path), "text": text})
    elif source.is_file():
        clips = []
        try:
            lines = _read_text(source).split("\n")
        except OSError as error:
            raise DataError(f"Cannot read {source}: {error.strerror}.") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                clip = json.loads(line)
                clips.append(clip | {"path": str(source.parent / clip["path"])})
                os.path.realpath(clips[-1]["path"])  # raises ValueError for an impossible path
            except (ValueError, TypeError, KeyError):
                raise DataError(f'Line {number} of {source} is not a JSON object with "path" and "text".') from None
    else:
        raise DataError(f"There is no manifest or folder {source}.")
    if not clips:
        raise DataError(
            f"{source} names no clip; give audio files ({', '.join(AUDIO_SUFFIXES)}), each with a .txt beside it."
        )
    return clips


def _read_text(path: Path) -> str:
    """Reads UTF-8. Invalid bytes become lone surrogates, so that `encode_text` refuses only the clip that has them."""
    return path.read_bytes().decode("utf-8-sig", errors="surrogateescape")


def prepare(
    source: str | os.PathLike,
    target: str | os.PathLike,
    codec: Codec,
    *,
    config: DiaConfig | None = None,
    workers: int = 4,
    progress: bool = False,
) -> Summary:
    """Encodes recordings with their transcripts into a prepared folder, and resumes an unfinished one.

    Args:
        source: see `read_manifest`.
        target: path of the prepared folder.
        codec: encodes the recordings.
        config: config of the model to be trained, for its limits; Dia-1.6B's by default.
        workers: number of threads that read and resample ahead of the codec.
        progress: show a progress bar.

    Returns:
        what was kept and what was refused. The refusals are also written to `refused.jsonl`.

    Raises:
        DataError: the source names no clip, or the folder cannot be used.
    """
    if workers < 1:
        raise DataError(f"workers is {workers}; it must be at least 1.")
    config = config or DiaConfig()
    clips = read_manifest(source)
    limit, rate = config.frame_budget, codec.config.sample_rate

    def read(clip: dict[str, Any]) -> np.ndarray | DiaError:
        try:
            if not isinstance(clip.get("text"), str):
                raise DataError("It has no transcript that can be read.")
            encode_text(clip["text"], max_length=config.encoder.max_length, vocab_size=config.encoder.vocab_size)
            samples = read_audio(clip["path"], rate=rate)
            if -(-len(samples) // codec.config.hop) > limit:
                seconds, longest = len(samples) / rate, limit / codec.config.frame_rate
                raise DataError(f"It lasts {seconds:.1f} s, but the model takes {longest:.1f} s; split it.")
            return samples
        except DiaError as error:
            return error

    refused = []
    with Writer(target, codec.config, codec.digest) as writer, ThreadPoolExecutor(workers) as pool:
        texts: dict[str, Any] = {item.source: item.text for item in writer.items if item.source}
        remaining = []
        for clip in clips:
            path = os.path.realpath(clip["path"])
            if path not in texts:
                remaining.append(clip)
                texts[path] = clip.get("text")
            elif texts[path] != clip.get("text"):
                refused.append((clip["path"], "It came before with another transcript; prepare into a new folder."))
        bar = tqdm(total=len(clips), initial=len(clips) - len(remaining), desc="preparing", disable=not progress)
        # Only a few clips are read ahead, because their samples are held in memory.
        ahead = [pool.submit(read, clip) for clip in remaining[: 2 * workers]]
        for index, clip in enumerate(remaining):
            samples = ahead.pop(0).result()
            if index + 2 * workers < len(remaining):
                ahead.append(pool.submit(read, remaining[index + 2 * workers]))
            if isinstance(samples, DiaError):
                refused.append((clip["path"], str(samples)))
            else:
                writer.add(
                    codec.encode(samples), clip["text"], voice=clip.get("voice"), source=os.path.realpath(clip["path"])
                )
            bar.update()
        bar.close()
        lines = "".join(json.dumps({"source": path, "reason": reason}) + "\n" for path, reason in refused)
        write_whole(writer.folder / "refused.jsonl", lines)
        return Summary(len(writer.items), writer.frames / codec.config.frame_rate, refused)
