"""How well the small voice speaks, by measures that are stated where they are taken (tiny/ears.py).

    pip install -e '.[dev]' -r benchmarks/tiny/requirements.txt
    python benchmarks/tiny_voice.py

Sentences are of the training grammar and not in the training set; prompts are at pitches that it does not hold. The
teacher's own audio, and the same behind the codec, stand beside. Writes benchmarks/results/tiny-voice.json.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
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

from dia_jax import Dia, dac
from dia_jax.training.data import Dataset, Writer, make_batch
from dia_jax.training.loss import LossSettings, loss

ALTO, BASS = speech.VOICES["alto"], speech.VOICES["bass"]
USUAL = {1: ALTO, 2: BASS}


def error_rate(pairs: list[tuple[str, np.ndarray]]) -> float:
    """Word errors over words, of all clips together."""
    counts = np.array([ears.word_errors(said, ears.hear(samples)) for said, samples in pairs])
    return float(counts[:, 0].sum() / counts[:, 1].sum())


def speak(dia: Dia, texts: list[str], seed: int, **more: Any) -> list[np.ndarray]:
    seeds = [seed + i for i in range(len(texts))]
    return dia.generate(texts, seed=seeds, max_tokens=900, batch_size=16, progress=True, **more)


def median_pitch(samples: np.ndarray) -> float:
    return float(np.nanmedian(np.concatenate([ears.pitches(samples), [np.nan]])))


def words_and_endings(dia: Dia, texts: list[str], seeds: int) -> dict[str, Any]:
    """Word error rates, and whether clips end where they should."""
    teacher = [(f"[S{1 + i % 2}] {text}", corpus.say(text, USUAL[1 + i % 2])) for i, text in enumerate(texts)]
    assert dia.codec is not None
    coded = [
        (script, dia.decode_codes(dac.encode_samples(dia.codec.module, samples, config=dia.codec.config)))
        for script, samples in teacher
    ]
    scripts = [script for script, _ in teacher]
    rates, lengths, silent = [], [], []
    for seed in range(seeds):
        clips = speak(dia, scripts, 1000 * seed)
        rates.append(error_rate(list(zip(scripts, clips, strict=True))))
        lengths += [len(clip) / len(samples) for clip, (_, samples) in zip(clips, teacher, strict=True)]
        silent += [ears.ends_in_silence(clip) for clip in clips]
    return {
        "word error rate": float(np.mean(rates)),
        "word error rate, each seed": rates,
        "word error rate of the teacher": error_rate(teacher),
        "word error rate of the teacher behind the codec": error_rate(coded),
        "ends within 1.5 of the teacher's length": float(np.mean([1 / 1.5 <= x <= 1.5 for x in lengths])),
        "ends in silence": float(np.mean(silent)),
    }


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
                    writer.add(corpus.encode(values, text, ALTO), f"[S1] {text}")
        dataset = Dataset(Path(folder) / "data", dia.config)
        batch = make_batch(dataset, dataset.items)
    swapped = np.arange(len(dataset.items)).reshape(-1, 2)[:, ::-1].reshape(-1)
    other = batch | {name: batch[name][swapped] for name in ("text", "text_mask")}
    model = nnx.merge(dia.graphdef, dia.params)
    right, wrong = (float(loss(model, each, LossSettings())[1]["channels"][0]) for each in (batch, other))
    return {"right": right, "another": wrong, "difference": wrong - right, "pairs": len(pairs)}


def two_voices(dia: Dia, texts: list[str], seed: int) -> float:
    """Share of two-turn scripts in which the first third's median pitch is nearer to the first tag's voice than to the
    other's, and the last third's to the second's."""
    scripts, firsts = [], []
    for i, (one, two) in enumerate(zip(texts[::2], texts[1::2], strict=False)):
        tag = 1 + i % 2
        scripts.append(f"[S{tag}] {one} [S{3 - tag}] {two}")
        firsts.append(tag)
    right = []
    for clip, tag in zip(speak(dia, scripts, seed), firsts, strict=True):
        third = len(clip) // 3
        begin, end = median_pitch(clip[:third]), median_pitch(clip[-third:])
        one, two = USUAL[tag].pitch, USUAL[3 - tag].pitch
        right.append(bool(ears.nearer(begin, one, two) and ears.nearer(end, two, one)))
    return float(np.mean(right))


def prompt_followed(dia: Dia, texts: list[str], seed: int) -> dict[str, float]:
    """Share of continuations whose median pitch is nearer to the prompt's than to the other voice's; prompts are
    3 to 7 % beside a voice's pitch, half of them under the tag that is usually the other voice's."""
    rng = np.random.default_rng(seed)
    scripts, prompts, wanted = [], [], []
    for i, (one, two) in enumerate(zip(texts[::2], texts[1::2], strict=False)):
        tag, voice = 1 + i % 2, (ALTO, BASS)[(i // 2) % 2]
        beside = dataclasses.replace(voice, pulses=voice.pulses * (1 + rng.choice([-1, 1]) * rng.uniform(0.03, 0.07)))
        scripts.append(f"[S{tag}] {one} [S{tag}] {two}")
        prompts.append((corpus.say(one, beside), 44_100))
        wanted.append((beside.pitch, BASS.pitch if voice is ALTO else ALTO.pitch, USUAL[tag] is voice))
    clips = speak(dia, scripts, seed, audio_prompt=prompts)
    right = np.array(
        [ears.nearer(median_pitch(clip), one, other) for clip, (one, other, _) in zip(clips, wanted, strict=True)]
    )
    usual = np.array([each for _, _, each in wanted])
    seconds = [(script.split("] ")[-1], clip) for script, clip in zip(scripts, clips, strict=True)]
    return {
        "followed": float(right.mean()),
        "under the other voice's tag": float(right[~usual].mean()),
        "word error rate of the continuation": error_rate(seconds),
    }


def sounds(dia: Dia, texts: list[str], seed: int) -> dict[str, float]:
    """Each sound: how often it is heard where it is written, and where it is not."""
    found = {}
    names = list(speech.sounds())
    plain = speak(dia, [f"[S1] {text}" for text in texts], seed)
    for name in names:
        clips = speak(dia, [f"[S1] {text} ({name})" for text in texts], seed)
        found[f"({name}) where it is written"] = float(np.mean([ears.has_sound(name, clip) for clip in clips]))
        found[f"({name}) where it is not"] = float(np.mean([ears.has_sound(name, clip) for clip in plain]))
    return found


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
    parser.add_argument("--sentences", type=int, default=60, help="for each check")
    parser.add_argument("--seeds", type=int, default=3, help="for the word error rate")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    texts = corpus.held_out(1000)
    count = options.sentences
    dia = Dia.from_pretrained(options.model)
    found: dict[str, Any] = words_and_endings(dia, texts[:count], options.seeds)
    found["text decides"] = text_decides(dia, texts)
    found["two voices"] = two_voices(dia, texts[100 : 100 + 2 * count], 5000)
    found["prompt"] = prompt_followed(dia, texts[300 : 300 + 2 * count], 6000)
    found["sounds"] = sounds(dia, texts[500 : 500 + count // 3], 7000)
    with tempfile.TemporaryDirectory() as folder:
        found["road"] = road(dia, texts[600:604], Path(folder))
    found["seconds of the first command"] = start(options.model)
    rows = []
    for name, value in found.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, number in parts:
            rows.append([name, part, f"{number:.3f}" if isinstance(number, float) else number])
    print(table(["check", "", "value"], rows))
    about = machine() | {"sampling": dataclasses.asdict(dia.config.sampling)}
    print(f"written to {write_results(options.results, 'tiny-voice', about | found)}")


if __name__ == "__main__":
    main()
