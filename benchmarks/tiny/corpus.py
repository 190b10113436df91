"""The small voice's training set: words to codes, and codes to sentences, dialogues, prompts and sounds.

A word is spoken once a voice and encoded; all else is made by laying codes end to end, which is exact because every
word begins and ends in silence. What is to be learnt is encoded by `codec.encode`, and prompts, which are given, by
DAC's own encoder, as they will be for whoever brings one. Writes prepared folders as `dia-jax prepare` does.
"""

import dataclasses
import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path

import codec
import numpy as np
import speech
import vocabulary
from flax import nnx
from tqdm import tqdm

from dia_jax import Codec
from dia_jax.training.prepare import Writer

HELD_OUT = 7919
"""Seed of the sentences that are kept for judging."""
SHORT = 15
"""Bytes: what fits, with its tag, into the smallest batch of the trainer."""
KNOWN = frozenset(vocabulary.words())
BYTE = np.zeros(speech.FRAMES_PER_BYTE * speech.HOP, np.float32)
"""What a tag's or a mark's time sounds like."""
PITCHES = 9
"""At which each voice speaks prompts, its own the middle one."""

Codes = dict[str, dict[str, np.ndarray]]
"""Of voices, of words: int16 [T, C]; "" is a byte's silence, and under the voice "" are also the sounds."""


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
    parts = []
    for each in sentence.split(" "):
        word = each.rstrip(speech.MARKS)
        parts += [word if word in KNOWN else word.lower(), *each[len(word) :]]
    return parts


def say(sentence: str, voice: speech.Voice) -> np.ndarray:
    """Samples of a sentence behind its speaker's tag."""
    return _lay(sentence, BYTE, lambda word: _word(word, voice))


def encode(values: dict[str, np.ndarray], sentence: str, voice: speech.Voice) -> np.ndarray:
    """Codes of a sentence behind its speaker's tag, int16 [T, C], as the training set has them."""
    return _lay(sentence, codec.encode(values, BYTE), lambda word: codec.encode(values, _word(word, voice)))


def _lay(sentence: str, quiet: np.ndarray, spoken: Callable[[str], np.ndarray]) -> np.ndarray:
    parts = [quiet if part in speech.MARKS else spoken(part) for part in split(sentence)]
    return np.concatenate([quiet, quiet, *parts])


def _word(word: str, voice: speech.Voice) -> np.ndarray:
    return speech.speak(speech.envelopes(word), voice)


def build_codec() -> tuple[nnx.GraphDef, nnx.State]:
    """From the words in every voice, and the sounds."""
    words = [_word(word, voice) for word in vocabulary.words() for voice in speech.VOICES.values()]
    return codec.build(words + 8 * list(speech.sounds().values()), progress=True)


def speak(values: dict[str, np.ndarray], whole: Codec) -> Codes:
    """Every word in every voice, and the sounds. For prompts also at pitches up to 8 % beside the voice's, named
    "alto 0", ..., and as it sounds when a recording of what was learnt is given back, "alto again".

    Args:
        values: the codec's parameters by path, for `codec.encode`.
        whole: the same codec, for DAC's encoder.
    """
    beside = {
        f"{voice.name} {i}": dataclasses.replace(voice, pulses=voice.pulses * (1 + part))
        for voice in speech.VOICES.values()
        for i, part in enumerate(np.linspace(-0.08, 0.08, PITCHES))
    }
    samples = {"": BYTE} | {f"({name})": sound for name, sound in speech.sounds().items()}
    found: Codes = {"": {name: codec.encode(values, sound) for name, sound in samples.items()}}
    quiet = _given(whole, BYTE)
    found |= {name: {} for name in speech.VOICES} | {name: {"": quiet} for name in beside}
    found |= {f"{name} again": {"": quiet} for name in speech.VOICES}
    jobs = [(values, word, beside) for word in vocabulary.words()]
    with multiprocessing.get_context("fork").Pool() as pool:
        for word, own, given in tqdm(pool.imap(_spoken, jobs, chunksize=4), total=len(jobs), desc="speaking"):
            for name, codes in own.items():
                found[name][word] = codes
                again = whole.decode(codes.astype(np.int32))
                found[f"{name} again"][word] = _given(whole, again)
            for name, each in given.items():
                found[name][word] = _given(whole, each)
    return found


def _spoken(
    job: tuple[dict[str, np.ndarray], str, dict[str, speech.Voice]],
) -> tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A word, its codes in the voices that are learnt, and its samples in those of prompts."""
    values, word, beside = job
    own = {name: codec.encode(values, _word(word, voice)) for name, voice in speech.VOICES.items()}
    return word, own, {name: _word(word, voice) for name, voice in beside.items()}


def _given(whole: Codec, samples: np.ndarray) -> np.ndarray:
    return whole.encode(samples).astype(np.int16)


def write(target: Path, codes: Codes, *, items: int, seed: int, short: float) -> None:
    """Strings of one to three words, as many as `short` says; else one to three turns, prompts to continue, and sounds.

    Half of the sentences have sense, half have none. A third of those that follow another are strings of its words, so
    that a place in a script is not to be found by the last words alone.
    """
    rng, grammar, kept = random.Random(seed), vocabulary.Grammar(seed), set(held_out(1000))
    sounds = [name for name in codes[""] if name]
    heard = [*range(PITCHES), *["again"] * (PITCHES // 3)]

    def few_words() -> str:
        text = grammar.string(1, 3)
        return text if len(text) <= SHORT else few_words()

    def sentence(before: list[str]) -> str:
        if before and rng.random() < 1 / 3:
            text = grammar.string(1, 8, before)
        else:
            text = grammar.string(1, 8) if rng.random() < 0.5 else grammar.sentence()
        return text if text not in kept else sentence(before)

    with Writer(target, codec.CONFIG) as writer:
        for _ in tqdm(range(items), desc="composing"):
            tag = rng.choice([1, 2])
            kind = "short" if rng.random() < short else rng.choices(["one", "turns", "prompt"], [1, 4, 5])[0]
            cast, turns, prompt = {1: "alto", 2: "bass"}, [tag], 0
            if kind == "turns":
                turns = [tag, 3 - tag, tag][: rng.choice([2, 2, 2, 3])]
            if kind == "prompt":
                # Mostly under the tag that is the other voice's without a prompt: nothing else shows that it is heard.
                if rng.random() < 0.7:
                    cast = {1: "bass", 2: "alto"}
                turns = [tag, tag] if rng.random() < 0.8 else [tag, 3 - tag]
            text: list[str] = []
            before: list[str] = []
            said: list[np.ndarray] = []
            for number, turn in enumerate(turns):
                given = kind == "prompt" and number == 0
                words = few_words() if kind == "short" else sentence(before)
                before = [part for part in split(words) if part not in speech.MARKS]
                voice = f"{cast[turn]} {rng.choice(heard)}" if given else cast[turn]
                quiet = codes[voice if given else ""][""]
                if number == 0 or turn != turns[0] or rng.random() < 0.5:
                    text.append(f"[S{turn}]")
                    said += [quiet, quiet]
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
