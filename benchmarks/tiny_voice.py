"""How well the small voice speaks, by measures that are stated where they are taken (tiny/ears.py).

    pip install -e '.[dev]' -r benchmarks/tiny/requirements.txt
    python benchmarks/tiny_voice.py

Sentences are of the training grammar and not in the training set; prompts are at pitches that it does not hold. Each
measure is tried on the teacher's own audio, and on the same behind the codec, too. Some 15 minutes on two cores. Writes
benchmarks/results/tiny-voice.json.
"""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "tiny"))

import codec
import corpus
import ears
import numpy as np
import speech
from common import RESULTS, machine, table, write_results
from flax import nnx

from dia_jax import Dia
from dia_jax.training.batches import Dataset, make_batch
from dia_jax.training.loss import loss
from dia_jax.training.prepare import Writer
from dia_jax.training.settings import LossSettings

USUAL = {1: speech.VOICES["alto"], 2: speech.VOICES["bass"]}
"""Whose voice a tag is, where no prompt says otherwise."""

Speaker = Callable[[list[str], int, list[speech.Voice]], list[np.ndarray]]
"""Scripts and a seed to clips. With voices, each is a script's second sentence, behind the first as a prompt."""


def turns(script: str) -> list[tuple[int, str, str]]:
    """Tag, sentence, and the name of the sound behind it or ""."""
    return [
        (int(tag), text, name) for tag, text, name in re.findall(r"\[S(\d)\] ([^\[(]+[.?!])(?: \((\w+)\))?", script)
    ]


def teacher(scripts: list[str], seed: int, voices: list[speech.Voice]) -> list[np.ndarray]:
    """The speaker that the others are measured by; it needs no seed."""
    if voices:
        return [corpus.say(turns(script)[1][1], voice) for script, voice in zip(scripts, voices, strict=True)]
    clips = []
    for script in scripts:
        parts = []
        for tag, text, name in turns(script):
            parts += [corpus.say(text, USUAL[tag]), *([speech.sounds()[name]] if name else [])]
        clips.append(np.concatenate(parts))
    return clips


def behind_codec(dia: Dia) -> Speaker:
    """The teacher, encoded and decoded."""
    assert dia.codec is not None
    whole = dia.codec

    def speak(scripts: list[str], seed: int, voices: list[speech.Voice]) -> list[np.ndarray]:
        clips = teacher(scripts, seed, voices)
        return [whole.decode(whole.encode(clip)) for clip in clips]

    return speak


def voice_of(dia: Dia) -> Speaker:
    """The small voice, at the settings that it ships with."""

    def speak(scripts: list[str], seed: int, voices: list[speech.Voice]) -> list[np.ndarray]:
        prompts = [(corpus.say(turns(s)[0][1], voice), 44_100) for s, voice in zip(scripts, voices, strict=False)]
        seeds = [seed + i for i in range(len(scripts))]
        more: dict[str, Any] = {"audio_prompt": prompts} if prompts else {}
        return dia.generate(scripts, seed=seeds, max_tokens=900, batch_size=16, progress=True, **more)

    return speak


# --- Checks: each takes a speaker, sentences and seeds ---------------------------------------------------------------


def error_rate(scripts: list[str], clips: list[np.ndarray]) -> float:
    """Word errors over words, of all clips together."""
    pairs = zip(scripts, clips, strict=True)
    counts = np.array([ears.word_errors(script, ears.hear(samples)) for script, samples in pairs])
    return float(counts[:, 0].sum() / counts[:, 1].sum())


def median_pitch(samples: np.ndarray) -> float:
    return float(np.nanmedian(np.concatenate([ears.pitches(samples), [np.nan]])))


def words_and_endings(speak: Speaker, texts: list[str], seeds: range) -> dict[str, Any]:
    """Word error rates, and whether clips end where they should."""
    scripts = [f"[S{1 + i % 2}] {text}" for i, text in enumerate(texts)]
    wanted = [len(clip) for clip in teacher(scripts, 0, [])]
    rates, lengths, silent = [], [], []
    for seed in seeds:
        clips = speak(scripts, seed, [])
        rates.append(error_rate(scripts, clips))
        lengths += [len(clip) / length for clip, length in zip(clips, wanted, strict=True)]
        silent += [ears.ends_in_silence(clip) for clip in clips]
    return {
        "word error rate": float(np.mean(rates)),
        "word error rate, each seed": rates,
        "ends within 1.5 of the teacher's length": float(np.mean([1 / 1.5 <= x <= 1.5 for x in lengths])),
        "ends in silence": float(np.mean(silent)),
    }


def two_voices(speak: Speaker, texts: list[str], seeds: range) -> dict[str, float]:
    """Share of two-turn scripts in which the first third's median pitch is nearer to the first tag's voice than to the
    other's, and the last third's to the second's."""
    scripts, tags = [], []
    for i, (one, two) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        tags.append(1 + i % 2)
        scripts.append(f"[S{tags[-1]}] {one} [S{3 - tags[-1]}] {two}")
    right = []
    for seed in seeds:
        for clip, tag in zip(speak(scripts, seed, []), tags, strict=True):
            third = len(clip) // 3
            begin, end = median_pitch(clip[:third]), median_pitch(clip[-third:])
            one, two = USUAL[tag].pitch, USUAL[3 - tag].pitch
            right.append(ears.nearer(begin, one, two) and ears.nearer(end, two, one))
    return {"two voices": float(np.mean(right))}


def prompt_followed(speak: Speaker, texts: list[str], seeds: range) -> dict[str, float]:
    """Share of continuations whose median pitch is nearer to the prompt's than to the other voice's; prompts are
    3 to 7 % beside a voice's pitch, half of them under the tag that is usually the other voice's."""
    rng = np.random.default_rng(0)
    scripts, voices, others, usual = [], [], [], []
    for i, (one, two) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        tag, whose = 1 + i % 2, 1 + (i // 2) % 2
        beside = 1 + rng.choice([-1, 1]) * rng.uniform(0.03, 0.07)
        scripts.append(f"[S{tag}] {one} [S{tag}] {two}")
        voices.append(dataclasses.replace(USUAL[whose], pulses=USUAL[whose].pulses * beside))
        others.append(USUAL[3 - whose])
        usual.append(tag == whose)
    right, rates = [], []
    for seed in seeds:
        clips = speak(scripts, seed, voices)
        asked = zip(clips, voices, others, strict=True)
        right.append([ears.nearer(median_pitch(clip), voice.pitch, other.pitch) for clip, voice, other in asked])
        rates.append(error_rate(texts[1::2], clips))
    return {
        "prompt followed": float(np.mean(right)),
        "prompt followed under the other voice's tag": float(np.mean(np.array(right)[:, ~np.array(usual)])),
        "word error rate behind a prompt": float(np.mean(rates)),
    }


def sounds(speak: Speaker, texts: list[str], seeds: range) -> dict[str, float]:
    """Each sound: how often it is heard where it is written, and where it is not."""
    scripts = [f"[S1] {text}" for text in texts]
    plain = [clip for seed in seeds for clip in speak(scripts, seed, [])]
    found = {}
    for name in speech.sounds():
        written = [clip for seed in seeds for clip in speak([f"{script} ({name})" for script in scripts], seed, [])]
        found[f"({name}) where it is written"] = float(np.mean([ears.has_sound(name, clip) for clip in written]))
        found[f"({name}) where it is not"] = float(np.mean([ears.has_sound(name, clip) for clip in plain]))
    return found


# --- The model -------------------------------------------------------------------------------------------------------


def text_decides(dia: Dia, texts: list[str]) -> dict[str, float]:
    """Nats on channel 0 with the right text, and with another one of the same length in its place."""
    assert dia.codec is not None
    values = codec.kernels(dia.codec.params)
    by_length: dict[int, list[str]] = {}
    for text in texts:
        by_length.setdefault(len(text), []).append(text)
    pairs = [(a, b) for group in by_length.values() for a, b in zip(group[::2], group[1::2], strict=False)][:16]
    with tempfile.TemporaryDirectory() as folder:
        with Writer(Path(folder) / "data", dia.codec.config) as writer:
            for pair in pairs:
                for text in pair:
                    writer.add(corpus.encode(values, text, USUAL[1]), f"[S1] {text}")
        dataset = Dataset(Path(folder) / "data", dia.config)
        batch = make_batch(dataset, dataset.items)
    swapped = np.arange(len(dataset.items)).reshape(-1, 2)[:, ::-1].reshape(-1)
    other = batch | {name: batch[name][swapped] for name in ("text", "text_mask")}
    model = nnx.merge(dia.graphdef, dia.params)
    right, wrong = (float(loss(model, each, LossSettings())[1]["channels"][0]) for each in (batch, other))
    return {"right": right, "another": wrong, "difference": wrong - right, "pairs": len(pairs)}


def road(dia: Dia, texts: list[str], folder: Path) -> dict[str, int]:
    """Greedy codes of whole sentences here and in transformers, from the same weights in its layout."""
    import torch
    import transformers

    from dia_jax import save_params
    from dia_jax.text import encode_text

    save_params(folder / "theirs", dia.config, dia.params, layout="transformers")
    theirs = transformers.DiaForConditionalGeneration.from_pretrained(folder / "theirs", dtype=torch.float32).eval()
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from conftest import reference_generate

    different = frames = 0
    for text in texts:
        script = f"[S1] {text}"
        ours = dia.generate_codes(script, temperature=0.0, max_tokens=500)
        codes = reference_generate(theirs, encode_text(script, max_length=1024), frames=500)
        frames += len(codes)
        different += int((ours != codes).sum()) if ours.shape == codes.shape else max(len(ours), len(codes)) * 9
    return {"sentences": len(texts), "frames": frames, "codes that differ": different}


def start(model: str) -> float:
    """Seconds of the README's first command behind its installation, from start to end, nothing compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        script = "[S1] There is my red rabbit under the window. [S2] Good morning, Peter! (whistles)"
        command = [sys.executable, "-m", "dia_jax", "generate", script, "--picture", "--model", model]
        subprocess.run(
            [*command, "--output", f"{folder}/hello.wav"],
            env=os.environ | {"XDG_CACHE_HOME": folder},
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="the voice; by default the one in the package")
    parser.add_argument(
        "--sentences", type=int, default=20, help="scripts for each check and seed; a quarter for sounds"
    )
    parser.add_argument("--seeds", type=int, default=3, help="for each check")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    texts, count = corpus.held_out(1000), options.sentences
    dia = Dia.from_pretrained(options.model)
    seeds, one = range(0, 1000 * options.seeds, 1000), range(1)
    heard: dict[str, dict[str, Any]] = {}
    for name, speak, each in (
        ("voice", voice_of(dia), seeds),
        ("teacher", teacher, one),
        ("teacher behind the codec", behind_codec(dia), one),
    ):
        heard[name] = words_and_endings(speak, texts[:count], each)
        heard[name] |= two_voices(speak, texts[100 : 100 + 2 * count], each)
        heard[name] |= prompt_followed(speak, texts[300 : 300 + 2 * count], each)
        heard[name] |= sounds(speak, texts[500 : 500 + -(-count // 4)], each)
    print(
        table(
            ["check", *heard], [[check, *(_shown(each[check]) for each in heard.values())] for check in heard["voice"]]
        )
    )
    found: dict[str, Any] = {"text decides": text_decides(dia, texts)}
    with tempfile.TemporaryDirectory() as folder:
        found["road"] = road(dia, texts[600:604], Path(folder))
    found["start"] = {"seconds of the first command": start(options.model)}
    print(
        table(["check", "", "value"], [[c, part, _shown(x)] for c, parts in found.items() for part, x in parts.items()])
    )
    about = machine() | {
        "sentences": count,
        "seeds": options.seeds,
        "sampling": dataclasses.asdict(dia.config.sampling),
    }
    print(f"written to {write_results(options.results, 'tiny-voice', about | heard | found)}")


def _shown(value: Any) -> str:
    return " ".join(map(_shown, value)) if isinstance(value, list) else f"{value:.3f}".removesuffix(".000")


if __name__ == "__main__":
    main()
