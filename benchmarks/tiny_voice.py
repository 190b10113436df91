"""How well the small voice speaks, by measures that are stated where they are taken (tiny/ears.py).

    pip install -e '.[dev]' -r benchmarks/tiny/requirements.txt
    python benchmarks/tiny_voice.py

A hundred scripts of two turns, written by hand as a newcomer would and never trained on: tiny/open.txt is open English,
tiny/known.txt has few and common words, and by tiny/choose.txt settings and weights are chosen. Prompts are of pitches
that the training set does not hold. Each figure has its 95 % interval, by resampling scripts (bootstrap); each measure
is tried on the teacher's own audio, too, and on that behind the codec. Some half an hour on two cores.
Writes benchmarks/results/tiny-voice.json.
"""

import argparse
import dataclasses
import os
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
import ears
import lexicon
import numpy as np
import speech
import spoken
import texts
from common import RESULTS, machine, table, write_results
from flax import nnx

from dia_jax import Dia
from dia_jax.training.batches import Dataset, make_batch
from dia_jax.training.loss import loss
from dia_jax.training.prepare import Writer
from dia_jax.training.settings import LossSettings

USUAL = {1: speech.VOICES["alto"], 2: speech.VOICES["bass"]}
"""Whose voice a tag is, where no prompt says otherwise."""
MOST_FRAMES = 2000
RESAMPLES = 2000
RANKS = (100, 500, 1500, 5000, lexicon.COUNT)

Speaker = Callable[[list[str], int, list[np.ndarray]], list[np.ndarray]]
"""Scripts and a seed to clips. With prompts, samples of each script's first turn, the clips are what follows."""
Voices = list[dict[int, speech.Voice]]


def teacher(voices: Voices | None = None) -> Speaker:
    """The speaker that the others are measured by; it needs no seed, and for prompts the voices that they are in."""

    def speak(scripts: list[str], seed: int, prompts: list[np.ndarray]) -> list[np.ndarray]:
        clips = [
            np.concatenate(spoken.say_script(script, voices[i] if voices else USUAL))
            for i, script in enumerate(scripts)
        ]
        return [clip[len(prompts[i]) :] if prompts else clip for i, clip in enumerate(clips)]

    return speak


def behind_codec(dia: Dia, speak: Speaker) -> Speaker:
    """Another speaker, its words encoded as they are for training where they can be, and decoded."""
    assert dia.codec is not None
    whole = dia.codec

    def again(scripts: list[str], seed: int, prompts: list[np.ndarray]) -> list[np.ndarray]:
        return [whole.decode(whole.encode(clip)) for clip in speak(scripts, seed, prompts)]

    return again


def voice_of(dia: Dia) -> Speaker:
    """The small voice, at the settings that it ships with."""

    def speak(scripts: list[str], seed: int, prompts: list[np.ndarray]) -> list[np.ndarray]:
        seeds = [seed + i for i in range(len(scripts))]
        more: dict[str, Any] = {"audio_prompt": [(prompt, ears.RATE) for prompt in prompts]} if prompts else {}
        return dia.generate(scripts, seed=seeds, max_tokens=MOST_FRAMES, batch_size=16, progress=True, **more)

    return speak


# --- Checks: each takes a speaker, scripts and seeds -----------------------------------------------------------------


def found(values: np.ndarray, out_of: np.ndarray | None = None) -> dict[str, Any]:
    """A share over scripts and seeds, with the 95 % interval that other scripts could have given.

    Args:
        values: [scripts, seeds].
        out_of: of the same shape, what each is a part of; 1 if None.
    """
    out_of = np.ones(values.shape) if out_of is None else out_of
    rows, whole = values.sum(axis=1), out_of.sum(axis=1)
    drawn = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    shares = rows[drawn].sum(axis=1) / whole[drawn].sum(axis=1)
    low, high = np.quantile(shares, [0.025, 0.975])
    each = (values.sum(axis=0) / out_of.sum(axis=0)).tolist()
    return {"share": float(rows.sum() / whole.sum()), "interval": [float(low), float(high)], "each seed": each}


def word_errors(scripts: list[str], clips: list[list[np.ndarray]]) -> dict[str, Any]:
    """Word errors over words; clips by seed."""
    counts = np.array(
        [[ears.word_errors(s, ears.hear(clip)) for s, clip in zip(scripts, each, strict=True)] for each in clips]
    )
    return found(counts[..., 0].T, counts[..., 1].T)


def median_pitch(samples: np.ndarray) -> float:
    return float(np.nanmedian(np.concatenate([ears.pitches(samples), [np.nan]])))


def two_turns(speak: Speaker, scripts: list[str], seeds: range) -> dict[str, Any]:
    """Word errors; whether the first third's median pitch is nearer to the first tag's voice than to the other's, and
    the last third's to the second's; whether clips end where they should, and in silence."""
    clips = [speak(scripts, seed, []) for seed in seeds]
    wanted = [len(clip) for clip in teacher()(scripts, 0, [])]
    two, ends, silent = np.zeros((3, len(scripts), len(clips)))
    for number, each in enumerate(clips):
        for i, clip in enumerate(each):
            third = len(clip) // 3
            one, other = (USUAL[tag].pitch for tag, _ in texts.turns(scripts[i])[:2])
            begin, end = median_pitch(clip[:third]), median_pitch(clip[-third:] if third else clip)
            two[i, number] = ears.nearer(begin, one, other) and ears.nearer(end, other, one)
            ends[i, number] = 1 / 1.5 <= len(clip) / wanted[i] <= 1.5
            silent[i, number] = ears.ends_in_silence(clip)
    return {
        "word errors": word_errors(scripts, clips),
        "two voices": found(two),
        "ends within 1.5 of the teacher's length": found(ends),
        "ends in silence": found(silent),
    }


def prompt_voices(count: int, beside: tuple[float, float]) -> Voices:
    """A voice for each script's prompt, in turn one like alto and one like bass, so much beside it in pitch, up or
    down; and the voice itself for what follows."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        usual = USUAL[1 + (i // 2) % 2]
        factor = 1 + rng.choice([-1, 1]) * rng.uniform(*beside)
        found.append({1: dataclasses.replace(usual, pulses=usual.pulses * factor), 2: usual})
    return found


def prompted(speak: Speaker, scripts: list[str], seeds: range, voices: Voices, again: bool) -> dict[str, Any]:
    """Whether the median pitch behind a prompt is nearer to the prompt's than to the other voice's; half of them are
    under the tag that is usually the other voice's. What follows has the tag again, or goes on in the same turn."""
    said = [[text for _, text in texts.turns(script)] for script in scripts]
    tags = [f"[S{1 + i % 2}] " for i in range(len(said))]
    asked = [f"{tag}{one} {tag if again else ''}{two}" for tag, (one, two) in zip(tags, said, strict=True)]
    mine = [dict.fromkeys((1, 2), voice[1]) for voice in voices]
    prompts = [spoken.say_sentence(one, voice[1]) for (one, _), voice in zip(said, mine, strict=True)]
    clips = [speak(asked, seed, prompts) for seed in seeds]
    right, unusual = np.zeros((len(scripts), len(clips))), []
    for i, voice in enumerate(voices):
        others = USUAL[2] if voice[2] is USUAL[1] else USUAL[1]
        unusual.append(voice[2] is not USUAL[1 + i % 2])
        for number, each in enumerate(clips):
            right[i, number] = ears.nearer(median_pitch(each[i]), voice[1].pitch, others.pitch)
    return {
        "followed": found(right),
        "followed under the other voice's tag": found(right[np.array(unusual)]),
        "word errors behind them": word_errors([f"[S1] {two}" for _, two in said], clips),
    }


def sounds(speak: Speaker, scripts: list[str], seeds: range) -> dict[str, Any]:
    """Each sound: how often it is heard where it is written, and where it is not."""
    one = [f"[S{tag}] {text}" for tag, text in (texts.turns(script)[0] for script in scripts)]
    plain = [speak(one, seed, []) for seed in seeds]
    heard = {}
    for name in speech.sounds():
        written = [speak([f"{script} ({name})" for script in one], seed, []) for seed in seeds]
        for where, clips in (("is", written), ("is not", plain)):
            has = np.array([[ears.has_sound(name, clip) for clip in each] for each in clips], float)
            heard[f"({name}) where it {where} written"] = found(has.T)
    return heard


# --- The model -------------------------------------------------------------------------------------------------------


def text_decides(dia: Dia, scripts: list[str]) -> dict[str, float]:
    """Nats on channel 0 of first turns with the right text, and with another one of the same length in its place."""
    assert dia.codec is not None
    values = codec.kernels(dia.codec.params)
    by_length: dict[int, list[str]] = {}
    for script in scripts:
        text = texts.turns(script)[0][1]
        by_length.setdefault(len(text), []).append(text)
    pairs = [(a, b) for group in by_length.values() for a, b in zip(group[::2], group[1::2], strict=False)][:16]
    with tempfile.TemporaryDirectory() as folder:
        with Writer(Path(folder) / "data", dia.codec.config) as writer:
            for pair in pairs:
                for text in pair:
                    said = [codec.encode(values, part) for part in spoken.say_script(f"[S1] {text}", USUAL)]
                    writer.add(np.concatenate(said), f"[S1] {text}")
        dataset = Dataset(Path(folder) / "data", dia.config)
        batch = make_batch(dataset, dataset.items)
    swapped = np.arange(len(dataset.items)).reshape(-1, 2)[:, ::-1].reshape(-1)
    other = batch | {name: batch[name][swapped] for name in ("text", "text_mask")}
    model = nnx.merge(dia.graphdef, dia.params)
    right, wrong = (float(loss(model, each, LossSettings())[1]["channels"][0]) for each in (batch, other))
    return {"right": right, "another": wrong, "difference": wrong - right, "pairs": len(pairs)}


def like_the_teacher(dia: Dia, scripts: list[str]) -> dict[str, float]:
    """The share of words' frames whose first code is the teacher's, by how common the word is.

    Every byte lasts as long as any other, so frames can be compared one by one. It tells more than word errors do from
    as many clips: they are whisper's, too.
    """
    assert dia.codec is not None
    values, ranks = codec.kernels(dia.codec.params), {word: i for i, word in enumerate(lexicon.frequencies())}
    equal: dict[str, list[np.ndarray]] = {f"words up to {most:,}": [] for most in RANKS} | {"words never heard": []}
    clips = dia.generate_codes(scripts, seed=list(range(len(scripts))), max_tokens=MOST_FRAMES, batch_size=16)
    for script, codes in zip(scripts, clips, strict=True):
        at, first = 0, np.pad(codes[:, 0], (0, MOST_FRAMES), constant_values=-1)  # behind its end it says nothing
        for (part, _), samples in zip(spoken.parts(f"{script} "), spoken.say_script(script, USUAL), strict=True):
            wanted = codec.encode(values, samples)[:, 0]
            heard = first[at : at + len(wanted)]
            at += len(wanted)
            if not part or part.startswith("("):
                continue
            new = part in lexicon.held_out() or part not in ranks
            kind = "words never heard" if new else f"words up to {next(n for n in RANKS if ranks[part] < n):,}"
            equal[kind].append(heard == wanted)
    return {kind: float(np.concatenate(each).mean()) for kind, each in equal.items() if each}


def road(dia: Dia, scripts: list[str], folder: Path) -> dict[str, int]:
    """Greedy codes of whole scripts here and in transformers, from the same weights in its layout."""
    import torch
    import transformers

    from dia_jax import save_params
    from dia_jax.text import encode_text

    save_params(folder / "theirs", dia.config, dia.params, layout="transformers")
    theirs = transformers.DiaForConditionalGeneration.from_pretrained(folder / "theirs", dtype=torch.float32).eval()
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from conftest import reference_generate

    different = frames = 0
    for script in scripts:
        ours = dia.generate_codes(script, temperature=0.0, max_tokens=MOST_FRAMES)
        codes = reference_generate(theirs, encode_text(script, max_length=1024), frames=MOST_FRAMES)
        frames += len(codes)
        different += int((ours != codes).sum()) if ours.shape == codes.shape else max(len(ours), len(codes)) * 9
    return {"scripts": len(scripts), "frames": frames, "codes that differ": different}


def start(model: str) -> float:
    """Seconds of the README's first command behind its installation, from start to end, nothing compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        script = "[S1] Hello, how are you today? [S2] I am fine, thank you very much. (whistles)"
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
    parser.add_argument("--scripts", choices=("open", "known", "choose"), default="open", help="see above")
    parser.add_argument("--count", type=int, default=100, help="scripts; a fifth for sounds, a half for prompts")
    parser.add_argument("--seeds", type=int, default=3, help="for each check")
    parser.add_argument("--skip", nargs="*", default=(), choices=("teacher", "prompts", "sounds", "model"))
    parser.add_argument("--name", default="tiny-voice", help="of the JSON file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    scripts = texts.scripts(options.scripts)[: options.count]
    dia = Dia.from_pretrained(options.model)
    seeds, one = range(0, 1000 * options.seeds, 1000), range(1)
    half, fifth = scripts[: -(-len(scripts) // 2)], scripts[: -(-len(scripts) // 5)]
    kinds = {
        "3 to 7 % beside": ((0.03, 0.07), False),
        "15 to 25 % beside": ((0.15, 0.25), False),
        "3 to 7 % beside, then the tag again": ((0.03, 0.07), True),
    }
    speakers: list[tuple[str, Callable[[Voices | None], Speaker], range]] = [("voice", lambda _: voice_of(dia), seeds)]
    if "teacher" not in options.skip:
        speakers += [
            ("teacher", teacher, one),
            ("teacher behind the codec", lambda voices: behind_codec(dia, teacher(voices)), one),
        ]
    results: dict[str, Any] = machine() | {
        "scripts": options.scripts,
        "count": len(scripts),
        "seeds": options.seeds,
        "sampling": dataclasses.asdict(dia.config.sampling),
    }
    for name, speaker, each in speakers:
        results[name] = two_turns(speaker(None), scripts, each)
        if "prompts" not in options.skip:
            for kind, (beside, again) in kinds.items():
                voices = prompt_voices(len(half), beside)
                # The teacher goes on in the prompt's own voice.
                mine = [dict.fromkeys((1, 2), voice[1]) for voice in voices]
                heard = prompted(speaker(mine), half, each, voices, again)
                results[name] |= {f"prompts {kind}: {check}": value for check, value in heard.items()}
        if "sounds" not in options.skip:
            results[name] |= sounds(speaker(None), fifth, each)
        rows = [
            [check, f"{v['share']:.1%}", "{:.1%} to {:.1%}".format(*v["interval"])]
            for check, v in results[name].items()
        ]
        print(table([name, "share", "95 %"], rows))
        write_results(options.results, options.name, results)
    if "model" not in options.skip:
        results["text decides"] = text_decides(dia, scripts)
        results["first codes like the teacher's"] = like_the_teacher(dia, scripts)
        with tempfile.TemporaryDirectory() as folder:
            results["road"] = road(dia, scripts[:4], Path(folder))
        results["start"] = {"seconds of the first command": start(options.model)}
        for check in ("text decides", "first codes like the teacher's", "road", "start"):
            print(check, results[check])
    print(f"written to {write_results(options.results, options.name, results)}")


if __name__ == "__main__":
    main()
