"""The small voice's training set: spoken sentences to codes, and codes to dialogues, prompts and sounds.

A sentence is spoken once a voice and encoded; dialogues are made by laying codes end to end, which is exact because
every clip begins and ends in silence. Writes prepared folders as `dia-jax prepare` does.
"""

import contextlib
import dataclasses
import multiprocessing
import random
from pathlib import Path

import codec
import numpy as np
import speech
import vocabulary
from flax import nnx
from tqdm import tqdm

from dia_jax.training.data import Writer

HELD_OUT = 7919
"""Seed of the sentences that are kept for judging."""
SHORT = 18
"""Bytes: what fits, with its tag, into the smallest batch of the trainer."""
LEAD = 2 * speech.FRAMES_PER_BYTE
"""Silent frames before a sentence: for the speaker's tag, a byte, and the space behind it."""


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A sentence in one voice, and its codes [T, C]: as many frames as `[S1]`, a space, its bytes and a space have."""

    text: str
    codes: np.ndarray


def held_out(count: int) -> list[str]:
    """Sentences that the training set does not hold; four words at least, so that there are many others."""
    grammar, found = vocabulary.Grammar(HELD_OUT), []
    while len(found) < count:
        sentence = grammar.sentence()
        if sentence not in found and sentence.count(" ") >= 3:
            found.append(sentence)
    return found


def say(sentence: str, voice: speech.Voice) -> np.ndarray:
    """Samples of a sentence behind its speaker's tag."""
    return _led(speech.speak(speech.envelopes(sentence), voice))


def _led(samples: np.ndarray) -> np.ndarray:
    return np.pad(samples, (LEAD * speech.HOP, 0))


def sentences(count: int, seed: int) -> list[str]:
    """Half with sense, half without, and none that is held out."""
    grammar, kept = vocabulary.Grammar(seed), set(held_out(1000))
    found: list[str] = []
    while len(found) < count:
        sentence = grammar.string(3, 8) if len(found) % 2 else grammar.sentence()
        if sentence not in kept:
            found.append(sentence)
    return found


def short_strings(count: int, seed: int) -> list[str]:
    """One to three words without sense, of at most `SHORT` bytes."""
    grammar, found = vocabulary.Grammar(seed), []
    while len(found) < count:
        string = grammar.string(1, 3)
        if len(string) <= SHORT:
            found.append(string)
    return found


def build_codec(count: int = 500) -> tuple[nnx.GraphDef, nnx.State]:
    """From sentences in every voice, and the sounds."""
    clips = []
    for text in sentences(count, 1):
        with contextlib.suppress(ValueError):  # read otherwise than word by word
            clips += [say(text, voice) for voice in speech.VOICES.values()]
    return codec.build(clips + 8 * list(speech.sounds().values()), progress=True)


def speak_all(
    values: dict[str, np.ndarray], texts: list[str], seed: int, cache: Path
) -> tuple[dict[str, list[Spoken]], ...]:
    """Every sentence in every voice; and a fifth of them once more at a pitch beside the voice's, as prompts.

    Sentences that the teacher reads otherwise than word by word are left out. What was spoken before is read from the
    cache.
    """
    if not cache.exists():
        flat: dict[str, np.ndarray] = {"texts": np.array(texts)}
        jobs = [(values, i, text, seed) for i, text in enumerate(texts)]
        with multiprocessing.get_context("fork").Pool() as pool:
            for spoken in tqdm(pool.imap(_speak, jobs, chunksize=20), total=len(texts), desc="speaking"):
                flat |= spoken
        np.savez(cache.with_suffix(".part.npz"), **flat)
        cache.with_suffix(".part.npz").rename(cache)
    stored = dict(np.load(cache))
    found: tuple[dict[str, list[Spoken]], ...] = ({}, {})
    for name in sorted(key for key in stored if key != "texts"):
        voice, version, number = name.split("/")
        spoken = Spoken(str(stored["texts"][int(number)]), stored[name])
        found[version == "near"].setdefault(voice, []).append(spoken)
    return found


def _speak(job: tuple[dict[str, np.ndarray], int, str, int]) -> dict[str, np.ndarray]:
    values, number, text, seed = job
    rng, found = np.random.default_rng([seed, number]), {}
    try:
        parts = speech.envelopes(text)
    except ValueError:
        return {}
    for voice in speech.VOICES.values():
        versions = {"": voice}
        if number % 5 == 0:
            versions["near"] = dataclasses.replace(voice, pulses=voice.pulses * rng.uniform(0.92, 1.08))
        for name, version in versions.items():
            found[f"{voice.name}/{name}/{number}"] = codec.encode(values, _led(speech.speak(parts, version)))
    return found


def write(
    target: Path,
    values: dict[str, np.ndarray],
    spoken: tuple[dict[str, list[Spoken]], ...],
    *,
    items: int,
    seed: int,
    dialogues: bool = True,
) -> None:
    """Dialogues of one and two turns, prompts that are gone on with, and sounds; or each sentence by itself."""
    rng, (voices, prompts) = random.Random(seed), spoken
    sounds = {name: codec.encode(values, samples) for name, samples in speech.sounds().items()}
    usual = {1: "alto", 2: "bass"}
    with Writer(target, codec.CONFIG) as writer:
        for _ in tqdm(range(items - len(writer.items)), desc="composing"):
            tag = rng.choice([1, 2])
            kind = rng.choices(["one", "two", "prompt"], [0.5, 0.25, 0.25])[0] if dialogues else "one"
            cast, turns, prompt = usual, [tag] if kind == "one" else [tag, 3 - tag], 0
            parts: list[tuple[str, np.ndarray]] = []
            if kind == "prompt":
                first = rng.choice(["alto", "bass"])
                cast = {tag: first, 3 - tag: "bass" if first == "alto" else "alto"}
                turns = [tag, tag] if rng.random() < 0.7 else [tag, 3 - tag]
            for number, turn in enumerate(turns):
                pool = prompts if kind == "prompt" and number == 0 and rng.random() < 0.7 else voices
                chosen = rng.choice(pool[cast[turn]])
                again = kind == "prompt" and number and turn == turns[0]
                if number == 0 or not again or rng.random() < 0.5:
                    parts.append((f"[S{turn}] {chosen.text}", chosen.codes))
                else:
                    parts.append((chosen.text, chosen.codes[LEAD:]))
                if kind == "prompt" and number == 0:
                    prompt = len(chosen.codes)
                elif dialogues and rng.random() < 0.12:
                    name = rng.choice(list(sounds))
                    parts.append((f"({name})", sounds[name]))
            text, codes = " ".join(part[0] for part in parts), np.concatenate([part[1] for part in parts])
            starts = range(0, len(codes), speech.FRAMES_PER_BYTE)
            writer.add(codes, text, prompt=prompt, starts=tuple(starts[:-1]))  # the last space is not in the script
