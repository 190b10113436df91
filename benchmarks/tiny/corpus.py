"""The small voice's training set: words to codes, and codes to sentences, dialogues, prompts and sounds.

A word is spoken once a voice and encoded; all else is made by laying codes end to end, which is exact because every
word begins and ends in silence. Writes prepared folders as `dia-jax prepare` does.
"""

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
SHORT = 15
"""Bytes: what fits, with its tag, into the smallest batch of the trainer."""
PITCHES = 8
"""At which each voice speaks prompts, beside its own."""

Codes = dict[str, dict[str, np.ndarray]]
"""Of voices, of words: int16 [T, C]; and under "" what the other bytes sound like: speaker tags, marks, sounds."""


def held_out(count: int) -> list[str]:
    """Sentences that the training set does not hold; four words at least, so that there are many others."""
    grammar, found = vocabulary.Grammar(HELD_OUT), []
    while len(found) < count:
        sentence = grammar.sentence()
        if sentence not in found and sentence.count(" ") >= 3:
            found.append(sentence)
    return found


def split(sentence: str) -> list[str]:
    """Words as the vocabulary has them, and the marks behind them."""
    known, parts = set(vocabulary.words()), []
    for each in sentence.split(" "):
        word = each.rstrip(speech.MARKS)
        parts += [word if word in known else word.lower(), *each[len(word) :]]
    return parts


def say(sentence: str, voice: speech.Voice) -> np.ndarray:
    """Samples of a sentence behind its speaker's tag."""
    quiet = np.zeros(speech.FRAMES_PER_BYTE * speech.HOP, np.float32)
    parts = [quiet if part in speech.MARKS else _word(part, voice) for part in split(sentence)]
    return np.concatenate([quiet, quiet, *parts])


def _word(word: str, voice: speech.Voice) -> np.ndarray:
    return speech.speak(speech.envelopes(word), voice)


def build_codec() -> tuple[nnx.GraphDef, nnx.State]:
    """From the words in every voice, and the sounds."""
    words = [_word(word, voice) for word in vocabulary.words() for voice in speech.VOICES.values()]
    return codec.build(words + 8 * list(speech.sounds().values()), progress=True)


def speak(values: dict[str, np.ndarray]) -> Codes:
    """Every word in every voice, and at pitches up to 8 % beside it, named "alto 0", "alto 1", ...; and the sounds."""
    voices = dict(speech.VOICES)
    for voice in speech.VOICES.values():
        for i, part in enumerate(np.linspace(-0.08, 0.08, PITCHES)):
            voices[f"{voice.name} {i}"] = dataclasses.replace(voice, pulses=voice.pulses * (1 + part))
    found: Codes = {name: {} for name in voices}
    jobs = [(values, word, voices) for word in vocabulary.words()]
    with multiprocessing.get_context("fork").Pool() as pool:
        for word, codes in tqdm(pool.imap(_encode, jobs, chunksize=10), total=len(jobs), desc="speaking"):
            for name in voices:
                found[name][word] = codes[name]
    samples = {f"({name})": sound for name, sound in speech.sounds().items()}
    samples[""] = np.zeros(speech.FRAMES_PER_BYTE * speech.HOP)
    return found | {"": {name: codec.encode(values, sound) for name, sound in samples.items()}}


def _encode(
    job: tuple[dict[str, np.ndarray], str, dict[str, speech.Voice]],
) -> tuple[str, dict[str, np.ndarray]]:
    values, word, voices = job
    return word, {name: codec.encode(values, _word(word, voice)) for name, voice in voices.items()}


def write(target: Path, codes: Codes, *, items: int, seed: int, short: float) -> None:
    """Strings of one to three words, as many as `short` says; else one and two turns, prompts to continue, and sounds.

    Half of the sentences have sense, half have none.
    """
    rng, grammar, kept = random.Random(seed), vocabulary.Grammar(seed), set(held_out(1000))
    quiet, sounds = codes[""][""], [name for name in codes[""] if name]

    def sentence(kind: str) -> str:
        while True:
            if kind == "short":
                text = grammar.string(1, 3)
                if len(text) <= SHORT:
                    return text
            else:
                text = grammar.string(1, 8) if rng.random() < 0.5 else grammar.sentence()
                if text not in kept:
                    return text

    with Writer(target, codec.CONFIG) as writer:
        for _ in tqdm(range(items), desc="composing"):
            tag = rng.choice([1, 2])
            kind = "short" if rng.random() < short else rng.choices(["one", "two", "prompt"], [0.5, 0.25, 0.25])[0]
            cast, turns, prompt = {1: "alto", 2: "bass"}, [tag, 3 - tag] if kind == "two" else [tag], 0
            if kind == "prompt":
                first = rng.choice(["alto", "bass"])
                cast = {tag: first, 3 - tag: "bass" if first == "alto" else "alto"}
                turns = [tag, tag] if rng.random() < 0.7 else [tag, 3 - tag]
            text: list[str] = []
            said: list[np.ndarray] = []
            for number, turn in enumerate(turns):
                given = kind == "prompt" and number == 0
                words = sentence(kind)
                if number == 0 or turn != turns[0] or rng.random() < 0.5:
                    text.append(f"[S{turn}]")
                    said += [quiet, quiet]
                voice = f"{cast[turn]} {rng.randrange(PITCHES)}" if given and rng.random() < 0.7 else cast[turn]
                text.append(words)
                said += [quiet if part in speech.MARKS else codes[voice][part] for part in split(words)]
                if given:
                    prompt = sum(map(len, said))
                elif kind != "short" and rng.random() < 0.12:
                    text.append(rng.choice(sounds))
                    said.append(codes[""][text[-1]])
            whole = np.concatenate(said)
            starts = range(0, len(whole), speech.FRAMES_PER_BYTE)
            writer.add(whole, " ".join(text), prompt=prompt, starts=tuple(starts[:-1]))  # behind the last is a space
