"""Training data: recordings and transcripts to codes on disk, and from there to batches.

A prepared folder holds `codes.bin` (int16 [frames, C], clip behind clip), `items.jsonl` (a line a clip: text, voice,
where its codes stand) and `dataset.json` (the codec that made them: its config, and a digest of what encodes in it). A
clip counts when its line is whole and its codes are there, so that a run that is killed goes on where it was.

Knows files, text and the codec; knows no model but the token ids and delays in its config. Which clips stand in batch
i, and in what order, follows from the seed and i alone: nothing else needs to be remembered to go on with a run.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from tqdm import tqdm

from dia_jax import dac
from dia_jax.audio import read_audio
from dia_jax.checkpoint import dac_from_json, dac_to_json
from dia_jax.config import ConfigError, DacConfig, DiaConfig, DiaError
from dia_jax.decode import bucket
from dia_jax.delay import apply_delay
from dia_jax.files import read_json, visible, write_whole
from dia_jax.pipeline import Codec
from dia_jax.text import TextError, encode_text

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".opus")
SMALLEST_ROWS = 128
"""Rows of the shortest bucket; the next ones hold 192, 256, 384, 512, ... rows."""
HIDDEN_ROWS = 32
"""Rows that are hidden together: a third of a second, a word or so."""


class DataError(DiaError):
    """Training data that cannot be read or written; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A clip of a prepared folder.

    Attributes:
        text: its script.
        first, frames: where its codes stand in `codes.bin`, in frames.
        voice: who speaks, if that was told.
        source: the path of what it was made of, absolute.
        prompt: frames at its beginning that are a voice prompt, which is given and not learnt.
        starts: the frame at which each byte of the encoded script begins to be heard, if that is known.
    """

    text: str
    first: int
    frames: int
    voice: str | None = None
    source: str | None = None
    prompt: int = 0
    starts: tuple[int, ...] | None = None


class Writer:
    """Appends clips to a prepared folder, new or begun before; a context manager.

    Args:
        folder: its path.
        codec: what the codes are made for.
        encoder: the `encoder_digest` of what makes them, if they are made by a codec's encoder.

    Raises:
        DataError: the folder holds other things, is damaged, or has codes of another codec.
    """

    def __init__(self, folder: str | os.PathLike, codec: DacConfig, encoder: str | None = None):
        self.folder, self.codec = Path(folder), codec
        lines, codes = self.folder / "items.jsonl", self.folder / "codes.bin"
        header = {"codec": dac_to_json(codec), "encoder": encoder}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "dataset.json").exists():
                if visible(self.folder):
                    raise DataError(f"{folder} is not empty and no prepared data; name a new folder.")
                write_whole(self.folder / "dataset.json", json.dumps(header, indent=2) + "\n")
            *before, items = _read_folder(self.folder)
            if before != [codec, encoder]:
                raise DataError(f"{folder} was prepared with another codec; name a new folder.")
            # What stands behind the last whole clip was being written when a run ended.
            there = codes.stat().st_size // (codec.num_codebooks * 2) if codes.exists() else 0
            self.items = list(itertools.takewhile(lambda item: item.first + item.frames <= there, items))
            self.frames = self.items[-1].first + self.items[-1].frames if self.items else 0
            whole = "".join(map(_to_line, self.items))
            if not lines.exists() or lines.read_text(encoding="utf-8") != whole:
                write_whole(lines, whole)
            self._codes = open(codes, "ab")  # noqa: SIM115 (closed by __exit__)
            self._codes.truncate(self.frames * codec.num_codebooks * 2)
            self._lines = open(lines, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"Cannot write {folder}: {error.strerror}.") from None

    def add(self, codes: np.ndarray, text: str, **more: Any) -> None:
        """Appends one clip: codes int [T, C], its script, and further fields of `Item`."""
        item = Item(text, self.frames, len(codes), **more)
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


def encoder_digest(codec: Codec) -> str:
    """Tells codecs apart whose codes differ: by all weights of encoder and quantizer."""
    whole = hashlib.sha256()
    for part in ("encoder", "quantizer"):
        for value in jax.tree.leaves(codec.params[part]):
            whole.update(np.asarray(value).tobytes())
    return whole.hexdigest()[:16]


def _read_folder(folder: Path) -> tuple[DacConfig, str | None, list[Item]]:
    """The codec, the digest of its encoder, and the clips whose lines are whole.

    Raises:
        DataError: they cannot be read.
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


# --- Preparing -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `prepare` did.

    Attributes:
        kept: clips that stand in the folder.
        seconds: of audio in them.
        refused: source and reason of each that does not.
    """

    kept: int
    seconds: float
    refused: list[tuple[str, str]]


def read_manifest(source: str | os.PathLike) -> list[dict[str, Any]]:
    """The clips that a manifest or a folder names: dictionaries with path, text and perhaps voice.

    Args:
        source: a JSONL file whose lines have "path" (relative to the file) and "text", and may have "voice"; or a
            folder of audio files, each with a transcript of the same name ending in .txt.

    Raises:
        DataError: it is neither, or names no clip.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        clips: list[dict[str, Any]] = []
        for path in found:
            try:
                text = _read_text(path.with_suffix(".txt")).strip()
            except OSError:  # there is none, or it is not ours to read
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
                os.path.realpath(clips[-1]["path"])  # a ValueError where no path can be so
            except (ValueError, TypeError, KeyError):
                raise DataError(f'Line {number} of {source} is no JSON object with "path" and "text".') from None
    else:
        raise DataError(f"There is no manifest or folder {source}.")
    if not clips:
        raise DataError(
            f"{source} names no clip; give audio files ({', '.join(AUDIO_SUFFIXES)}) with .txt beside them."
        )
    return clips


def _read_text(path: Path) -> str:
    """UTF-8; other bytes become lone surrogates, which `encode_text` refuses, of the one clip that has them."""
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
    """Turns recordings and transcripts into a prepared folder; goes on with one that was begun.

    Args:
        source: see `read_manifest`.
        target: the folder.
        codec: makes the codes.
        config: of the model to be trained, for its limits; Dia-1.6B's by default.
        workers: threads that read and resample ahead of the codec.
        progress: show a progress bar.

    Returns:
        what was kept and what was refused; the reasons also stand in the folder's `refused.jsonl`.

    Raises:
        DataError: the source names nothing, or the folder cannot be written.
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
                seconds, most = len(samples) / rate, limit / codec.config.frame_rate
                raise DataError(f"It lasts {seconds:.1f} s, but the model takes {most:.1f} s; cut it up.")
            return samples
        except DiaError as error:
            return error

    refused = []
    with Writer(target, codec.config, encoder_digest(codec)) as writer, ThreadPoolExecutor(workers) as pool:
        done: dict[str, Any] = {item.source: item.text for item in writer.items if item.source}
        left = []
        for clip in clips:
            path = os.path.realpath(clip["path"])
            if path not in done:
                left.append(clip)
                done[path] = clip.get("text")
            elif done[path] != clip.get("text"):
                refused.append((clip["path"], "It came before with another transcript; prepare into a new folder."))
        bar = tqdm(total=len(clips), initial=len(clips) - len(left), desc="preparing", disable=not progress)
        # A window of clips is read ahead, no more: their samples stand in memory.
        ahead = [pool.submit(read, clip) for clip in left[: 2 * workers]]
        for number, clip in enumerate(left):
            samples = ahead.pop(0).result()
            if number + 2 * workers < len(left):
                ahead.append(pool.submit(read, left[number + 2 * workers]))
            if isinstance(samples, DiaError):
                refused.append((clip["path"], str(samples)))
            else:
                codes = dac.encode_samples(codec.module, samples, config=codec.config)
                writer.add(codes, clip["text"], voice=clip.get("voice"), source=os.path.realpath(clip["path"]))
            bar.update()
        bar.close()
        lines = "".join(json.dumps({"source": path, "reason": reason}) + "\n" for path, reason in refused)
        write_whole(writer.folder / "refused.jsonl", lines)
        return Summary(len(writer.items), writer.frames / codec.config.frame_rate, refused)


# --- Batches ---------------------------------------------------------------------------------------------------------


class Dataset:
    """A prepared folder, opened for reading.

    Raises:
        DataError: it is none, is damaged, or does not go with the model.
    """

    def __init__(self, folder: str | os.PathLike, config: DiaConfig):
        self.folder, self.config = Path(folder), config
        if not (self.folder / "dataset.json").exists():
            raise DataError(f"{folder} is no prepared data; make some with: dia-jax prepare")
        self.codec, self.encoder, self.items = _read_folder(self.folder)
        channels = self.codec.num_codebooks
        if (channels, self.codec.codebook_size) != (config.decoder.num_channels, config.eos_token_id):
            raise DataError(
                f"{folder} has {channels} codebooks of {self.codec.codebook_size} entries, but the model needs "
                f"{config.decoder.num_channels} of {config.eos_token_id}."
            )
        if not self.items:
            raise DataError(f"{folder} holds no clip.")
        frames, codes = self.items[-1].first + self.items[-1].frames, self.folder / "codes.bin"
        if not codes.exists() or codes.stat().st_size < frames * channels * 2:
            raise DataError(f"{folder}/codes.bin is shorter than its items say; prepare it again.")
        self.codes = np.memmap(codes, np.int16, "r", shape=(frames, channels))
        longest = max(item.frames for item in self.items)
        if longest > config.frame_budget:
            raise DataError(f"{folder} holds a clip of {longest} frames, but the model takes {config.frame_budget}.")
        for number, item in enumerate(self.items, 1):
            try:
                encode_text(item.text, max_length=config.encoder.max_length, vocab_size=config.encoder.vocab_size)
            except TextError as error:
                raise DataError(f"Line {number} of {folder}/items.jsonl: {error}") from None

    def made_by(self, codec: Codec) -> bool:
        """Whether these are the codes that a codec decodes, as far as the folder tells."""
        return codec.config == self.codec and self.encoder in (None, encoder_digest(codec))

    @functools.cached_property
    def digest(self) -> str:
        """Tells these clips from others."""
        whole = hashlib.sha256()
        for name in ("dataset.json", "items.jsonl"):
            whole.update((self.folder / name).read_bytes())
        return whole.hexdigest()[:16]

    def rows(self, item: Item) -> int:
        """Rows of the grid that predict a clip: its frames, EOS, and the delay of the last channel."""
        return item.frames + 1 + self.config.max_delay


def rows_bucket(rows: int) -> int:
    """The size to which clips of so many rows are padded: 128, 192, 256, 384, 512, ..."""
    whole = bucket(rows, SMALLEST_ROWS, 1 << 30)
    return whole * 3 // 4 if whole > SMALLEST_ROWS and rows <= whole * 3 // 4 else whole


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """How clips become batches.

    Attributes:
        rows: rows of the grid in one batch: the clips of a bucket, times its rows, are about so many.
        text_dropout: probability that a clip's script is hidden, which is what guidance sets itself off from.
        prompt_probability: that the beginning of a clip, 10 to 50 % of it, is given as a voice prompt and not learnt.
        history_dropout: share of the rows that the model does not hear when it predicts the next one: stretches of
            `HIDDEN_ROWS`, in some clips none, in some up to twice this share. Sound can mostly be guessed from the
            sound before, by far the most of what there is to learn; where that is hidden, it must be read. It is what
            makes a small model read at all, and 0 is right for one that does.
    """

    rows: int = 8192
    text_dropout: float = 0.15
    prompt_probability: float = 0.0
    history_dropout: float = 0.0

    def __post_init__(self):
        if self.rows < 1:
            raise DataError(f"rows is {self.rows}; it must be at least 1.")
        for name in ("text_dropout", "prompt_probability", "history_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must lie in 0 .. 1.")


class _Batches:
    """Batch i of an endless run over a dataset; a random-access source for grain."""

    def __init__(self, dataset: Dataset, settings: BatchSettings, seed: int, multiple: int):
        self.dataset, self.settings, self.seed = dataset, settings, seed
        self.buckets: dict[int, list[int]] = {}
        for number, item in enumerate(dataset.items):
            self.buckets.setdefault(rows_bucket(dataset.rows(item)), []).append(number)
        self.sizes = {rows: max(settings.rows // rows // multiple, 1) * multiple for rows in self.buckets}
        self.per_epoch = sum(-(-len(items) // self.sizes[rows]) for rows, items in self.buckets.items())
        self.plan = functools.lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> list[tuple[int, list[int]]]:
        rng = np.random.default_rng([self.seed, epoch])
        plan = []
        for rows in sorted(self.buckets):
            items, size = rng.permutation(self.buckets[rows]), self.sizes[rows]
            count = -(-len(items) // size)
            items = np.resize(items, count * size)  # the last batch is filled up from the beginning
            plan += [(rows, items[i * size : (i + 1) * size].tolist()) for i in range(count)]
        return [plan[i] for i in rng.permutation(len(plan))]

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        rows, numbers = self.plan(index // self.per_epoch)[index % self.per_epoch]
        rng = np.random.default_rng([self.seed, 1, index])
        hidden = rng.random(len(numbers)) < self.settings.text_dropout
        prompted = rng.random(len(numbers)) < self.settings.prompt_probability
        parts = rng.uniform(0.1, 0.5, len(numbers))
        items = [self.dataset.items[number] for number in numbers]
        prompts = [
            item.prompt or int(part * item.frames * chosen)
            for item, part, chosen in zip(items, parts, prompted, strict=True)
        ]
        batch = make_batch(self.dataset, items, rows=rows, prompts=prompts)
        shares = rng.uniform(0, 2 * self.settings.history_dropout, len(items))
        stretches = rng.random((len(items), rows // HIDDEN_ROWS + 2)) >= shares[:, None]
        offsets = rng.integers(HIDDEN_ROWS, size=len(items))
        kept = np.stack([np.repeat(s, HIDDEN_ROWS)[o : o + rows] for s, o in zip(stretches, offsets, strict=True)])
        # A prompt is heard whole: its last codes stand in the rows behind it, by their delays.
        ends = np.asarray([prompt + self.dataset.config.max_delay if prompt else 0 for prompt in prompts])
        given = np.arange(rows) <= ends[:, None]
        return batch | {"text": np.where(hidden[:, None], 0, batch["text"]), "heard": kept | given}


def make_batch(
    dataset: Dataset, items: Sequence[Item], *, rows: int | None = None, prompts: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """Lays clips out for the loss.

    Args:
        dataset: that holds them.
        items: B clips.
        rows: T, to which they are padded; by default what the longest needs.
        prompts: frames of each that are given; by default the items' own.

    Returns:
        text: int32 [B, S], padded with 0.
        text_mask: bool [B, S].
        grid: int32 [B, T + 1, C]: BOS, the delayed codes, EOS behind each channel's last, then PAD.
        heard: bool [B, T], the rows of 0 .. T - 1 that the model is given: here all.
        learnt: bool [B, T, C], the slots of rows 1 .. T that count: codes behind the prompt, and EOS.
        byte: int32 [B, T], the byte that is spoken in the frame that row t predicts; -1 where that is not known.
    """
    config = dataset.config
    rows = rows or max(dataset.rows(item) for item in items)
    prompts = [item.prompt for item in items] if prompts is None else prompts
    texts = [encode_text(item.text, max_length=config.encoder.max_length) for item in items]
    size = bucket(max(map(len, texts)), 128, config.encoder.max_length)
    text = np.zeros((len(items), size), np.int32)
    grid = np.full((len(items), rows + 1, config.decoder.num_channels), config.pad_token_id, np.int32)
    learnt = np.zeros((len(items), rows, config.decoder.num_channels), bool)
    byte = np.full((len(items), rows), -1, np.int32)
    delays = np.asarray(config.delay_pattern)
    for i, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        text[i, : len(texts[i])] = texts[i]
        codes = dataset.codes[item.first : item.first + item.frames]
        whole = apply_delay(
            np.concatenate([codes, np.full_like(codes[:1], config.eos_token_id)]),
            rows=item.frames + 2 + config.max_delay,
            delay_pattern=config.delay_pattern,
            bos_token_id=config.bos_token_id,
        )
        whole = np.where(whole < 0, config.pad_token_id, whole)[: rows + 1]
        grid[i, : len(whole)] = whole
        frame = np.arange(rows)[:, None] - delays  # of the slot in row 1 + t
        learnt[i] = (frame >= prompt) & (frame <= item.frames)
        if item.starts is not None:
            spoken = np.searchsorted(item.starts, np.arange(item.frames), side="right") - 1
            byte[i, : item.frames] = np.maximum(spoken, 0)
    heard = np.ones((len(items), rows), bool)
    return {"text": text, "text_mask": text != 0, "grid": grid, "heard": heard, "learnt": learnt, "byte": byte}


def batches(
    dataset: Dataset, settings: BatchSettings, *, seed: int = 0, multiple: int = 1, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, made ahead in threads, this process's share of each.

    Args:
        seed: of order, text dropout and prompts.
        multiple: clips in a batch are a multiple of this, so that so many devices can share it.
        start: the index of the first one; batch i is the same whenever it is asked for.

    Yields:
        what `make_batch` returns, with scripts and sound hidden and prompts given at random.
    """
    source = _Batches(dataset, settings, seed, multiple)
    processes, process = jax.process_count(), jax.process_index()

    def share(index: int) -> dict[str, np.ndarray]:
        batch = source(start + index)
        each = len(batch["text"]) // processes
        return {name: array[process * each : (process + 1) * each] for name, array in batch.items()}

    stream = grain.MapDataset.range(1 << 40).map(share)
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))
