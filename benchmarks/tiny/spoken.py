"""Speaks the lexicon and packs it for the trainer: codes of words by chunks of a byte's six frames, and texts.

    python benchmarks/tiny/spoken.py CODEC WORDNET OUT

Every word is spoken once in each of the two voices that are learnt, encoded by `codec.encode`. The words that prompts
may hold are also spoken by voices of other pitches and formants, and encoded as DAC encodes what it is given; and so is
what the voices themselves sound like behind the codec. Sentences are the examples of WordNet (Princeton's licence; the
folder of its files data.*, Debian's wordnet-base) and the dialogues of chatterbot-corpus (BSD).
"""

import argparse
import json
import lzma
import multiprocessing
import os
import random
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # there are as many processes as cores

import codec
import lexicon
import numpy as np
import speech
import texts
from flax import nnx
from tqdm import tqdm

from dia_jax import load_params, open_checkpoint, save_params

PROMPT_WORDS = 1200
QUIET = 0.6
"""Loudness of the commonest words against others."""
BYTE = np.zeros(speech.FRAMES_PER_BYTE * speech.HOP, np.float32)
"""What a tag's or a mark's time sounds like."""
BESIDE = {
    "alto": ((1.58, 0.96), (1.75, 1.05), (1.86, 1.0), (1.95, 0.98), (2.06, 1.03), (2.16, 1.0), (2.5, 1.08)),
    "bass": ((0.9, 0.9), (0.95, 0.93), (1.03, 0.9), (1.08, 0.96), (1.17, 0.98), (1.32, 1.0)),
}
"""Pitches and formants of the voices that speak prompts, by the voice that continues them."""

Values = dict[str, np.ndarray]


def prompt_voices() -> dict[str, speech.Voice]:
    return {
        f"{side} {pulses}": speech.Voice(side, pulses, warp) for side, all in BESIDE.items() for pulses, warp in all
    }


def say(word: str, voices: dict[str, speech.Voice]) -> list[np.ndarray]:
    """Samples of a word in each voice."""
    envelopes = speech.envelopes.__wrapped__("I" if word == "i" else word)  # once in a run: there is no use in a cache
    loudness = speech.LOUDNESS * (QUIET if word in lexicon.quiet() else 1)
    return [speech.speak(envelopes, voice, loudness) for voice in voices.values()]


def parts(script: str) -> list[tuple[str, int]]:
    """What sounds, in order, and under which tag: words, the sounds by their names in brackets, "" for a silent byte.

    A word has the byte behind it, too.
    """
    found, tag = [], 1
    for match in re.finditer(r"\[S([12])\] ?|\(([a-z]+)\) ?|([A-Za-z']+)[^A-Za-z'\[(]?|.", script):
        if match[1]:
            tag = int(match[1])
            found += [("", tag)] * 2
        else:
            found.append((f"({match[2]})" if match[2] else (match[3] or "").lower(), tag))
    return found


def say_script(script: str, voices: dict[int, speech.Voice]) -> list[np.ndarray]:
    """Samples of each part of a script and of the space behind it, as the training set has them."""
    made = {f"({name})": sound for name, sound in speech.sounds().items()} | {"": BYTE}
    return [made[part] if part in made else say(part, {"": voices[tag]})[0] for part, tag in parts(f"{script} ")]


def say_sentence(sentence: str, voice: speech.Voice) -> np.ndarray:
    """Samples of a sentence behind its speaker's tag, float32 at 44.1 kHz: six frames a byte.

    The tag and the space behind it are two silent bytes; one more stands for the space behind the sentence.
    """
    return np.concatenate(say_script(f"[S1] {sentence}", {1: voice}))


def hear(values: Values, codes: np.ndarray) -> np.ndarray:
    """What codes sound like, in numpy."""
    latents = np.zeros((len(codes), codec.CONFIG.latent_size), np.float32)
    dims, hop = codec.CONFIG.codebook_dim - 1, codec.CONFIG.hop
    for number in range(codec.CONFIG.num_codebooks):
        name = f"quantizer.quantizers.{number}"
        latents += values[f"{name}.codebook"][codes[:, number], :dims] @ values[f"{name}.out_proj.kernel"][0, :dims]
    kernel = values["decoder.block.0.conv_t1.kernel"][::-1][
        :, : codec.CONFIG.latent_size, : hop // codec.CONFIG.strides[-1]
    ]
    pieces = latents @ kernel.transpose(1, 0, 2).reshape(codec.CONFIG.latent_size, 2 * hop)
    out = np.zeros((len(codes) + 1) * hop, np.float32)
    for number, piece in enumerate(pieces):
        out[number * hop : (number + 2) * hop] += piece
    return out[hop // 2 : hop // 2 + len(codes) * hop]


def build_codec() -> nnx.State:
    """The codec's parameters, from words in every voice, and the sounds."""
    words = list(lexicon.frequencies())
    chosen = words[:600] + random.Random(1).sample(words[600:12_000], 1200)
    clips = [samples for word in tqdm(chosen, desc="speaking") for samples in say(word, speech.VOICES)]
    return codec.build(clips + 40 * list(speech.sounds().values()), progress=True)[1]


def speak_word(values: Values, word: str, prompt: bool) -> list[np.ndarray]:
    """Codes in the voices that are learnt, and if it is a prompt's word in those behind the codec and in the others."""
    own = [codec.encode(values, samples) for samples in say(word, speech.VOICES)]
    if not prompt:
        return own
    again = [codec.encode(values, hear(values, codes), stay=False) for codes in own]
    beside = [codec.encode(values, samples, stay=False) for samples in say(word, prompt_voices())]
    return [*own, *again, *beside]


_values: Values = {}


def _job(job: tuple[str, bool]) -> list[np.ndarray]:
    return speak_word(_values, *job)


def pack(out: Path, codes: list[np.ndarray]) -> None:
    """Codes of all chunks, two planes of bytes, channel by channel, compressed."""
    whole = np.ascontiguousarray(np.concatenate(codes).T)  # [C, frames]
    (out / "codes.xz").write_bytes(
        lzma.compress((whole & 255).astype(np.uint8).tobytes() + (whole >> 8).astype(np.uint8).tobytes(), preset=6)
    )
    (out / "chunks").write_text(str(whole.shape[1] // speech.FRAMES_PER_BYTE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", type=Path, help="folder of the codec; made if it is not there")
    parser.add_argument("wordnet", type=Path, help="folder of WordNet's files")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--words", type=int, default=lexicon.COUNT, help="the commonest only")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.codec.exists():
        save_params(options.codec, codec.CONFIG, build_codec(), layout="transformers")
    _values.update(codec.kernels(load_params(open_checkpoint(options.codec))[1]))
    frequencies, kept = dict(list(lexicon.frequencies().items())[: options.words]), lexicon.held_out()
    words = list(frequencies)
    number = {word: i for i, word in enumerate(words)}
    prompt_words = set([word for word in words if word not in kept][:PROMPT_WORDS])
    own = list(speech.VOICES)
    sides = [*range(len(own)), *range(len(own)), *(own.index(voice.name) for voice in prompt_voices().values())]
    quiet = [codec.encode(_values, BYTE), codec.encode(_values, BYTE, stay=False)]
    codes, total = [*quiet], len(quiet)
    sounds = []
    for name, sound in speech.sounds().items():
        codes.append(codec.encode(_values, sound))
        count = len(codes[-1]) // speech.FRAMES_PER_BYTE
        sounds.append((name, total, count))
        total += count
    starts = np.full((len(sides), len(words)), -1, np.int32)
    jobs = [(word, word in prompt_words) for word in words]
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        for word, said in enumerate(tqdm(pool.imap(_job, jobs, chunksize=16), total=len(jobs), mininterval=10)):
            for voice, each in enumerate(said):
                codes.append(each)
                starts[voice, word] = total
                total += len(each) // speech.FRAMES_PER_BYTE
    pack(options.out, codes)
    np.save(options.out / "starts.npy", starts)
    # The eight dimensions that `model.initial` looks at.
    books = {name: value[:, -8:] for name, value in _values.items() if name.endswith(".codebook")}
    np.savez(options.out / "codebooks.npz", **books)

    def known(text: str) -> bool:
        return all(word in number for word in re.findall(r"[a-z']+", text.lower()))

    sentences = [text for text in texts.training(options.wordnet) if known(text)]
    about: dict[str, Any] = {
        "words": words,
        "frequencies": [frequencies[word] for word in words],
        "held_out": [number[word] for word in words if word in kept],
        "own": list(range(len(own))),
        "sides": sides,
        "sounds": sounds,
        "sentences": sentences,
    }
    (options.out / "texts.json").write_text(json.dumps(about))
    print(f"{len(words)} words, {total} chunks, {len(sentences)} sentences")


if __name__ == "__main__":
    main()
