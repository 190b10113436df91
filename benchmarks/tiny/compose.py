"""Scripts and what is heard of them, put together from words: rows for the trainer, made in processes beside it.

A row is a script in bytes and, for each of them, the chunk of six codec frames that sounds while it is read: a word's
chunks cover its letters and the byte behind it, and any further mark is a chunk of silence. So a row is small, and the
device looks the codes up. Knows words, sentences and where the chunks of a word begin; knows no codes and no JAX.
"""

import dataclasses
import functools
import json
import multiprocessing
import queue
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TAGS = {1: b"\x01", 2: b"\x02"}
FRAMES_PER_BYTE = 6
MARGIN = 16  # positions behind the last frame: EOS, and the longest delay
MOST_WORDS = 20  # of a turn


def capacity(positions: int) -> int:
    """Chunks that fit into a row of so many positions."""
    return (positions - MARGIN) // FRAMES_PER_BYTE


def width(positions: int) -> int:
    """Bytes to which such a row's script is padded: the next multiple of 8."""
    return -(-capacity(positions) // 8) * 8


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What rows are made of, as shares.

    Attributes:
        prompted: of the rows, those that begin with a prompt.
        sense: of the turns, those of sentences; most others are words without sense, so that they must be read.
        alike: of the turns without sense, those in which all words are equally likely.
        power: of how often a word is said, its weight in the others.
        known: the commonest words, which have the weight of the next one.
        most: words, the commonest, from which those without sense are drawn.
    """

    prompted: float = 0.22
    sense: float = 0.35
    alike: float = 0.4
    power: float = 0.5
    known: int = 0
    most: int = 1 << 20


GOING_ON = Mixture(prompted=0.5, sense=0.2, alike=0.0, power=0.8, known=100, most=5000)
"""For a voice that reads already: it says the hundred commonest words as its teacher does, and the next ones less so,
the rarer they are."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A word as it is written, its number, and what stands behind it: marks, and a space or a hyphen."""

    written: str
    word: int
    behind: str

    @property
    def chunks(self) -> int:
        return len(self.written) + len(self.behind)


def _capital(item: Item) -> Item:
    return Item(item.written[0].upper() + item.written[1:], item.word, item.behind)


class Composer:
    """Draws rows.

    Args:
        folder: with `texts.json` and `starts.npy`, see spoken.py.
        seed: of all that is drawn.
        mixture: of what rows are made.
        held_out: draw words that are kept for judging, and no others.
    """

    def __init__(self, folder: Path, seed: int, mixture: Mixture, *, held_out: bool = False):
        texts = json.loads((folder / "texts.json").read_text())
        self.random, self.mixture = random.Random(seed), mixture
        self.starts = np.load(folder / "starts.npy").tolist()
        self.words: list[str] = texts["words"]
        self.numbers = {word: number for number, word in enumerate(self.words)}
        self.own, self.sides = texts["own"], texts["sides"]
        self.sounds = {name: (first, count) for name, first, count in texts["sounds"]}
        kept = set(texts["held_out"])
        usable = [n for n in range(len(self.words)) if (n in kept) == (held_out and bool(kept))]
        self.anywhere = self._weights(usable, texts["frequencies"])
        prompted = self.starts[len(self.own)]
        self.promptable = self._weights([n for n in usable if prompted[n] >= 0], texts["frequencies"])
        known = set(usable)
        parsed = [] if held_out else [self._parse(text) for text in texts["sentences"]]
        self.sentences = [items for items in parsed if items and all(item.word in known for item in items)]
        self.short_sentences = [s for s in self.sentences if all(prompted[item.word] >= 0 for item in s)]

    def _weights(self, words: list[int], frequencies: list[float]) -> tuple[list[int], list[float], list[float]]:
        """Words with cumulated weights: all alike, and by how often they are said."""
        words = [n for n in words if n < self.mixture.most]
        often = np.array([frequencies[max(n, min(self.mixture.known, len(self.words) - 1))] for n in words])
        often = often**self.mixture.power
        return words, np.arange(1, len(words) + 1).tolist(), np.cumsum(often).tolist()

    def _parse(self, text: str) -> list[Item]:
        """Items of a sentence, without its last mark; none if a word is not known."""
        items = []
        for written, behind in re.findall(r"([A-Za-z']+)([^A-Za-z']*)", text):
            number = self.numbers.get(written.lower())
            if number is None:
                return []
            items.append(Item(written, number, behind))
        return items

    def _string(self, count: int, words: tuple[list[int], list[float], list[float]]) -> list[Item]:
        """Words without sense."""
        weights = words[1] if self.random.random() < self.mixture.alike else words[2]
        return [self._item(number) for number in self.random.choices(words[0], cum_weights=weights, k=count)]

    def _item(self, number: int) -> Item:
        written, chance = self.words[number], self.random.random()
        if written == "i" or written.startswith("i'"):
            written = written.capitalize() if chance < 0.97 else written
        elif chance < 0.05:
            written = written.capitalize()
        elif chance < 0.057:
            written = written.upper()
        chance = self.random.random()
        behind = ", " if chance < 0.06 else "-" if chance < 0.075 else self.random.choice("; : ") + " "
        return Item(written, number, behind.replace("  ", " ") if chance < 0.08 else " ")

    def _turn(self, room: int, before: list[int], prompt: bool) -> list[Item]:
        """A turn of at most so many chunks; empty if nothing fits."""
        chance = self.random.random()
        count = self.random.randint(max(1, min(12, room // 12)), MOST_WORDS)
        sentences = self.short_sentences if prompt else self.sentences
        if before and chance < 0.15:
            items = [self._item(number) for number in self.random.choices(before, k=count)]
        elif sentences and chance < 0.15 + self.mixture.sense:
            items = list(self.random.choice(sentences))
            while len(items) < count and self.random.random() < 0.7:
                more, ending = self.random.choice(sentences), self.random.choice("..?!,") + " "
                items[-1] = Item(items[-1].written, items[-1].word, ending)
                items += more if ending == ", " else [_capital(more[0]), *more[1:]]
        else:
            items = self._string(count, self.promptable if prompt else self.anywhere)
        fits, total = [], 0
        for item in items[:MOST_WORDS]:
            total += item.chunks
            if total + 2 > room:  # the last mark and its space
                break
            fits.append(item)
        if not fits:
            return []
        if self.random.random() < 0.9:
            fits[0] = _capital(fits[0])
        ending = self.random.choices([". ", "? ", "! ", " "], [55, 22, 15, 7])[0]
        fits[-1] = Item(fits[-1].written, fits[-1].word, ending)
        return fits

    def row(self, positions: int) -> tuple[bytes, list[int], int]:
        """A script, its chunks (one more than bytes: behind the last is a space), and how many are a prompt."""
        room = capacity(positions)
        if positions > 256:
            room = self.random.randint(room * 5 // 8, room)
        tag, kind = self.random.choice([1, 2]), self.random.random()
        cast, prompt = {1: 0, 2: 1}, 0
        turns = [tag]
        prompted = positions > 256 and kind < self.mixture.prompted and bool(self.promptable[0])
        if prompted:
            # Mostly under the tag that is the other voice's without a prompt: nothing else shows that it is heard.
            if self.random.random() < 0.7:
                cast = {1: 1, 2: 0}
            turns = [tag, tag] if self.random.random() < 0.8 else [tag, 3 - tag]
            if positions > 1024:
                turns.append(3 - turns[1])
        elif positions > 256 and kind < 0.85:
            turns = [tag, 3 - tag, tag][: 3 if positions > 1024 else 2]
        elif positions > 1024:
            return self.row(1024)
        text, chunks, before = bytearray(), [], []
        for number, turn in enumerate(turns):
            given = prompted and number == 0
            voice = self.own[cast[turn]]
            if given:
                voice = self.random.choice([v for v, side in enumerate(self.sides) if side == cast[turn] and v > 1])
            quiet = 1 if given else 0
            if number == 0 or turn != turns[number - 1] or self.random.random() < 0.5:
                text += TAGS[turn] + b" "
                chunks += [quiet, quiet]
            left = room - len(chunks)
            if number + 1 < len(turns):
                left = int(left * self.random.uniform(0.3, 0.7))
            items = self._turn(left, before, given)
            before = [item.word for item in items]
            starts = self.starts[voice]
            for item in items:
                text += f"{item.written}{item.behind}".encode()
                first = starts[item.word]
                chunks += range(first, first + len(item.written) + 1)
                chunks += [quiet] * (len(item.behind) - 1)
            if given:
                prompt = len(chunks)
            elif items and self.random.random() < 0.06:
                name = self.random.choice(list(self.sounds))
                first, count = self.sounds[name]
                if len(chunks) + count <= room:
                    text += f"({name}) ".encode()
                    chunks += range(first, first + count)
        if not before:
            return self.row(positions)
        return bytes(text[:-1]), chunks, prompt

    def rows(self, positions: int, count: int) -> dict[str, np.ndarray]:
        """uint8 text [count, S], int32 chunks [count, S] and prompt [count]."""
        text = np.zeros((count, width(positions)), np.uint8)
        chunks, prompt = np.zeros(text.shape, np.int32), np.zeros(count, np.int32)
        for i in range(count):
            script, heard, prompt[i] = self.row(positions)
            text[i, : len(script)] = np.frombuffer(script, np.uint8)
            chunks[i, : len(heard)] = heard
        return {"text": text, "chunks": chunks, "prompt": prompt}


def _package(composer: Composer, positions: int, steps: int, rows: int) -> dict[str, np.ndarray]:
    made = composer.rows(positions, steps * rows)
    return {name: array.reshape(steps, rows, *array.shape[1:]) for name, array in made.items()}


def _work(
    folder: Path,
    seed: int,
    mixture: Mixture,
    shapes: dict[int, tuple[int, int]],
    queues: dict[int, multiprocessing.Queue],
) -> None:
    composer, trainer = Composer(folder, seed, mixture), multiprocessing.parent_process()
    while trainer is None or trainer.is_alive():
        positions = min(shapes, key=lambda positions: queues[positions].qsize() + composer.random.random())
        try:
            queues[positions].put(_package(composer, positions, *shapes[positions]), timeout=1)
        except queue.Full:
            continue


class Stream:
    """Rows by their length, made ahead in processes.

    Args:
        folder, mixture: see `Composer`.
        shapes: for each length in positions the steps of a package and the rows of a step.
        workers: processes.
        seed: of the rows.
    """

    def __init__(self, folder: Path, mixture: Mixture, shapes: dict[int, tuple[int, int]], workers: int, seed: int):
        self.folder, self.mixture, self.shapes, self.seed = folder, mixture, shapes, 1000 * (seed + 1)
        context = multiprocessing.get_context("spawn")
        self.queues = {positions: context.Queue(4) for positions in shapes}
        self.processes = [
            context.Process(target=_work, args=(folder, self.seed + i, mixture, shapes, self.queues), daemon=True)
            for i in range(workers)
        ]
        for process in self.processes:
            process.start()

    @functools.cached_property
    def _own(self) -> Composer:
        return Composer(self.folder, self.seed - 1, self.mixture)

    def take(self, positions: int) -> dict[str, np.ndarray]:
        """The next package; made here if the processes take longer than that."""
        try:
            return self.queues[positions].get(timeout=15)
        except queue.Empty:
            return _package(self._own, positions, *self.shapes[positions])

    def close(self) -> None:
        for process in self.processes:
            process.terminate()


def lengths(shapes: Sequence[int], positions: int) -> dict[int, int]:
    """Rows of a step by their length, so that a step has about so many positions."""
    return {length: max(positions // length, 1) for length in shapes}
