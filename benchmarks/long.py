"""Long scripts, judged: word errors, voices, times, detectors, joins, projects that are killed and changed.

    pip install -e '.[dev]' -r benchmarks/tiny/requirements.txt
    python benchmarks/long.py                         # all of it, on tiny: half an hour on two cores
    python benchmarks/long.py --only detectors words --seed 7

Tiny is the judge, because its teacher says each byte of a script in 70 ms: when each word should be said, and by whom,
is known. Scripts and seeds follow from --seed; the sentences, of tiny/open.txt, were never trained on. What is heard is
measured by whisper tiny.en and by Praat, not by what dia_jax itself measures. Writes results/long-tiny-*.json.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "tiny"))

import ears
import numpy as np
import parselmouth
import soundfile
import speech
import spoken
import texts
from common import RESULTS, machine, table, write_results

from dia_jax import Dia
from dia_jax.alignment import FRAME_RATE
from dia_jax.longform.mastering import edges
from dia_jax.longform.speech import Speech

RATE = 44_100
BYTE = speech.FRAMES_PER_BYTE / FRAME_RATE
TAGS = {"S1": speech.VOICES["alto"], "S2": speech.VOICES["bass"]}
KINDS = (
    "word cut at the end",
    "sentence skipped",
    "sentence doubled",
    "silence of 2 s",
    "wrong voice",
    "noise",
    "speed",
)


def sentences(rng: random.Random, count: int) -> list[str]:
    return rng.sample(texts.sentences(), count)


def dialogue(rng: random.Random, turns: int, names: tuple[str, ...] = ("S1", "S2")) -> list[tuple[str, str]]:
    """Turns of speakers who alternate, or follow each other at random where there are more than two."""
    said, before = [], ""
    for i, text in enumerate(sentences(rng, turns)):
        name = names[i % 2] if len(names) == 2 else rng.choice([n for n in names if n != before])
        said.append((name, text))
        before = name
    return said


def praat_pitch(samples: np.ndarray) -> float:
    """The median pitch by Praat, Hz; NaN where there is none."""
    if len(samples) < 0.1 * RATE:
        return float("nan")
    hertz = parselmouth.Sound(samples.astype(np.float64), RATE).to_pitch().selected_array["frequency"]
    return float(np.median(hertz[hertz > 0])) if (hertz > 0).any() else float("nan")


def part(speech_: Speech, start: float, end: float) -> np.ndarray:
    return speech_.samples[round(start * RATE) : round(end * RATE)]


# --- The podcast -----------------------------------------------------------------------------------------------------


def podcast(dia: Dia, rng: random.Random, *, turns: int) -> list[list[Any]]:
    """Ten minutes, two voices: by the command line with four candidates, and beside it single tries."""
    script = dialogue(rng, turns)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "script.txt", Path(folder) / "podcast"
        file.write_text("# A podcast\n" + "\n".join(f"[{name}] {text}" for name, text in script))
        took = time.perf_counter()
        seed = str(rng.randrange(2**31))
        command = [sys.executable, "-m", "dia_jax", "speak", str(file), str(out), "--candidates", "4", "--seed", seed]
        subprocess.run([*command, "--format", "flac", "--quiet"], check=True)
        took = time.perf_counter() - took
        samples = soundfile.read(out / "recording.flac", dtype="float32")[0]
        told = json.loads((out / "recording.json").read_text())
    single = dia.speak(script, seed=int(seed), candidates=1, retries=0)
    both = {"candidates 4": (samples, told["turns"], told["chunks"]), "single tries": _as_json(single)}
    wrong = {}
    for name, (sound, told_turns, chunks) in both.items():
        edits = words = right = found = 0
        for chunk in chunks:
            clip = sound[round(chunk["start"] * RATE) : round(chunk["end"] * RATE)]
            texts = [turn for turn in told_turns if chunk["number"] in turn["chunks"]]
            errors, count = ears.word_errors(" ".join(turn["text"] for turn in texts), ears.hear(clip))
            edits, words = edits + errors, words + count
            measures = chunk["verdict"]["measures"]
            if not measures.get("words_left_out", 1) and not measures.get("words_twice", 1):
                found += len(texts)
        for turn in told_turns:
            pitch = praat_pitch(sound[round(turn["start"] * RATE) : round(turn["end"] * RATE)])
            own = TAGS[turn["speaker"]].pitch
            other = TAGS["S2" if turn["speaker"] == "S1" else "S1"].pitch
            right += bool(pitch == pitch and ears.nearer(pitch, own, other))
        wrong[name] = edits / words
        passed = sum(bool(chunk["verdict"]["passed"]) for chunk in chunks)
        rows += [
            [f"{name}: word errors by whisper tiny.en", f"{100 * edits / words:.1f} % of {words}"],
            [
                f"{name}: turns in the right voice by Praat",
                f"{100 * right / len(told_turns):.1f} % of {len(told_turns)}",
            ],
            [
                f"{name}: turns whose chunk has no word left out or said twice, by the aligner",
                f"{found} of {len(told_turns)}",
            ],
            [f"{name}: chunks that passed", f"{passed} of {len(chunks)}"],
        ]
    length = len(samples) / RATE
    rows.append(["word errors, candidates 4 over single tries", f"{wrong['candidates 4'] / wrong['single tries']:.2f}"])
    rows.append(["length; time of the command, compiling included", f"{length:.0f} s; {took:.0f} s"])
    return rows


def _as_json(found: Speech) -> tuple[np.ndarray, list[dict[str, Any]], list[dict[str, Any]]]:
    return found.samples, [dataclasses.asdict(t) for t in found.turns], [dataclasses.asdict(c) for c in found.chunks]


def speakers(dia: Dia, rng: random.Random, *, turns: int) -> list[list[Any]]:
    """Three and four speakers: voices of the teacher's at other pitches, given as prompts."""
    pitches = {"Anna": ("alto", 1.07), "Ben": ("bass", 1.07), "Carl": ("bass", 0.93), "Dora": ("alto", 0.93)}
    voices, hertz = {}, {}
    for name, (side, beside) in pitches.items():
        own = speech.VOICES[side]
        voice = dataclasses.replace(own, pulses=own.pulses * beside)
        text = " ".join(sentences(rng, 2))
        while not 5.6 < (len(text) + 3) * BYTE < 8:
            text = " ".join(sentences(rng, 2))
        voices[name] = dia.make_voice((spoken.say_sentence(text, voice), RATE), text, name=name)
        hertz[name] = voice.pitch
    rows = []
    for count in (3, 4):
        names = tuple(pitches)[:count]
        script = dialogue(rng, turns, names)
        given = {name: voices[name] for name in names}
        found = dia.speak(script, voices=given, seed=rng.randrange(2**31), candidates=4)
        right = 0
        for turn in found.turns:
            pitch = praat_pitch(part(found, turn.start, turn.end))
            nearest = min(names, key=lambda name: abs(np.log2(pitch / hertz[name])) if pitch == pitch else np.inf)
            right += nearest == turn.speaker
        passed = sum(bool(chunk.verdict["passed"]) for chunk in found.chunks)
        rows.append([f"{count} speakers: turns in their speaker's voice by Praat", f"{right} of {len(found.turns)}"])
        rows.append([f"{count} speakers: chunks that passed", f"{passed} of {len(found.chunks)}"])
    return rows


# --- Times, detectors ------------------------------------------------------------------------------------------------


def words(dia: Dia, rng: random.Random, *, clips: int) -> list[list[Any]]:
    """Starts and ends of words against the teacher's true times, on its audio and on tiny's own."""
    assert dia.codec is not None
    errors: dict[str, list[float]] = {"the teacher's audio": [], "tiny's own codes": [], "tiny's own, as audio": []}
    for _ in range(clips):
        script = dialogue(rng, rng.choice([1, 2]))
        text = " ".join(f"[{name}] {said}" for name, said in script)
        sound = np.concatenate([spoken.say_sentence(said, TAGS[name]) for name, said in script])
        own = dia.generate_codes(text, seed=rng.randrange(2**31), max_tokens=1000)
        given = ((sound, RATE), own, (dia.decode_codes(own), RATE))
        for name, clip in zip(errors, given, strict=True):
            if name != "the teacher's audio" and abs(len(own) - len(sound) // speech.HOP) > 2:
                continue  # tiny left something out or said it twice: there is no true time
            alignment = dia.align(text, clip)
            for word, span in zip(alignment.words, alignment.spans, strict=True):
                errors[name] += [abs(word.start - span.start * BYTE), abs(word.end - span.stop * BYTE)]
    return [
        [
            f"words in time, {name}: median, 95th percentile, largest",
            ", ".join(f"{1000 * x:.0f} ms" for x in np.percentile(found, [50, 95, 100])) + f" of {len(found)}",
        ]
        for name, found in errors.items()
    ]


def damage(kind: str, script: list[tuple[str, str]], parts: list[np.ndarray], rng: random.Random) -> np.ndarray:
    """The teacher's clip, spoilt."""
    one, whole = rng.randrange(len(parts)), np.concatenate(parts)
    match kind:
        case "word cut at the end":
            return whole[: edges(whole, rate=RATE)[1] - round(rng.uniform(0.12, 0.3) * RATE)]
        case "sentence skipped":
            return np.concatenate([each for i, each in enumerate(parts) if i != one])
        case "sentence doubled":
            return np.concatenate([*parts[: one + 1], *parts[one:]])
        case "silence of 2 s":
            at = rng.randrange(1, len(parts))
            return np.concatenate([*parts[:at], np.zeros(2 * RATE, np.float32), *parts[at:]])
        case "wrong voice":
            other = TAGS["S2" if script[one][0] == "S1" else "S1"]
            return np.concatenate([*parts[:one], spoken.say_sentence(script[one][1], other), *parts[one + 1 :]])
        case "noise":
            power = np.sqrt(np.mean(whole**2)) * 10 ** (-rng.uniform(3, 15) / 20)
            noise = np.random.default_rng(rng.randrange(2**32)).standard_normal(len(whole))
            return (whole + power * noise).astype(np.float32)
        case _:  # half as fast again, at the same pitch
            import python_stretch

            stretcher = python_stretch.Signalsmith.Stretch(0)
            stretcher.configure(1, round(0.08 * RATE), round(0.02 * RATE))
            stretcher.setTimeFactor(1.5)
            padded = np.pad(whole, (0, stretcher.inputLatency() + 2 * stretcher.outputLatency() + RATE))
            return np.array(stretcher.process(padded[None])[0, : round(len(whole) / 1.5)])


def detectors(dia: Dia, rng: random.Random, *, clips: int) -> list[list[Any]]:
    """Spoilt clips that are refused, and good ones that are."""
    refused, counts, reasons = Counter[str](), Counter[str](), {kind: Counter[str]() for kind in (*KINDS, "good")}
    for number in range(clips):
        script = dialogue(rng, rng.choice([2, 3]))
        parts = [spoken.say_sentence(text, TAGS[name]) for name, text in script]
        kind = KINDS[number % len(KINDS)]
        spoilt = {"good": np.concatenate(parts), kind: damage(kind, script, parts, rng)}
        for name, samples in spoilt.items():
            verdict = dia.judge(script, (samples, RATE))
            counts[name] += 1
            refused[name] += not verdict.passed
            reasons[name].update(verdict.problems[:1])
    rows = [[f"refused: {kind}", f"{refused[kind]} of {counts[kind]}"] for kind in (*KINDS, "good")]
    spoilt = sum(refused[kind] for kind in KINDS)
    return [*rows, ["refused: all spoilt clips", f"{spoilt} of {clips} ({100 * spoilt / clips:.1f} %)"]]


# --- Joins, speed, carrying ------------------------------------------------------------------------------------------


def joins(dia: Dia, rng: random.Random) -> list[list[Any]]:
    """Steps at joins against those inside of chunks, silences against the plan, and speed."""
    script = dialogue(rng, 10)
    text = " ".join(f"[{name}] {said}{' (pause 0.9)' if i % 3 == 0 else ''}" for i, (name, said) in enumerate(script))
    found = dia.speak(text, seed=rng.randrange(2**31), candidates=2)
    steps = np.abs(np.diff(found.samples))
    at_joins, inside, silences = 0.0, 0.0, []
    for before, after in itertools.pairwise(found.chunks):
        end, start = round(before.end * RATE), round(after.start * RATE)
        at_joins = max(at_joins, steps[end - 2 : end + 2].max(), steps[start - 2 : start + 2].max())
        turn = next(turn for turn in found.turns if after.number in turn.chunks)
        ends_turn = next(turn for turn in reversed(found.turns) if before.number in turn.chunks)
        pause = 0.9 if ends_turn.number % 3 == 0 and turn.number != ends_turn.number else None
        planned = pause if pause is not None else 0.35 if turn.speaker != ends_turn.speaker else 0.2
        heard = _silence_around(found.samples, (end + start) // 2)
        silences.append(abs(heard - planned))
    for chunk in found.chunks:
        inside = max(inside, steps[round(chunk.start * RATE) + 300 : round(chunk.end * RATE) - 300].max())
    slow = dia.speak(text, seed=1, candidates=1, retries=0, speed=0.8)
    plain = dia.speak(text, seed=1, candidates=1, retries=0)
    pitch = praat_pitch(slow.samples) / praat_pitch(plain.samples)
    length = len(slow.samples) / (len(plain.samples) / 0.8)
    return [
        ["largest step of samples at a join; inside of chunks", f"{at_joins:.4f}; {inside:.4f}"],
        ["largest difference of a silence from the plan", f"{1000 * max(silences):.1f} ms of {len(silences)}"],
        ["speed=0.8: length over 1.25; pitch over the plain one's", f"{length:.4f}; {pitch:.4f}"],
    ]


def _silence_around(samples: np.ndarray, middle: int) -> float:
    """Seconds around a place in which no sample reaches -60 dBFS."""
    loud = np.flatnonzero(np.abs(samples) > 1e-3)
    before, after = loud[loud < middle], loud[loud >= middle]
    return (after[0] - before[-1]) / RATE


def carrying(dia: Dia, rng: random.Random, *, turns: int) -> list[list[Any]]:
    """All chunks at once against one after another, everything compiled."""
    script, seed = dialogue(rng, turns), rng.randrange(2**31)
    seconds: dict[str, list[float]] = {"at once": [], "one after another": []}
    for number in range(2):
        for name, batch in (("at once", 40), ("one after another", 1)):
            began = time.perf_counter()
            dia.speak(script, seed=seed, candidates=1, retries=0, batch_size=batch)
            if number:  # the first round compiles what is missing
                seconds[name].append(time.perf_counter() - began)
    rows = [[f"{turns} turns, {name}", ", ".join(f"{x:.1f} s" for x in took)] for name, took in seconds.items()]
    return [*rows, ["one after another over at once", f"{seconds['one after another'][0] / seconds['at once'][0]:.2f}"]]


# --- Projects --------------------------------------------------------------------------------------------------------


def projects(dia: Dia, rng: random.Random, *, kills: int) -> list[list[Any]]:
    """A project that is killed at random moments, and one in which a line changes."""
    script = dialogue(rng, 16)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.txt"
        file.write_text("\n".join(f"[{name}] {text}" for name, text in script))

        def command(out: str, *more: str) -> list[str]:
            run = [sys.executable, "-m", "dia_jax", "speak", str(file), f"{folder}/{out}", "--seed", "5", "--quiet"]
            return [*run, "--candidates", "2", *more]

        began = time.perf_counter()
        subprocess.run(command("whole"), check=True, capture_output=True)
        took = time.perf_counter() - began
        killed = 0
        for _ in range(kills):
            process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(timeout=rng.uniform(0.1, 1.0) * took)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
        subprocess.run(command("killed"), check=True, capture_output=True)
        same = _takes(Path(folder) / "whole") == _takes(Path(folder) / "killed")
        before = _takes(Path(folder) / "whole")
        number = 7
        script[number] = (script[number][0], sentences(rng, 1)[0])
        file.write_text("\n".join(f"[{name}] {text}" for name, text in script))
        subprocess.run(command("whole"), check=True, capture_output=True)
        after = _takes(Path(folder) / "whole")
        stayed = all(after.get(name) == data for name, data in before.items())
        told = json.loads((Path(folder) / "whole" / "project.json").read_text())
        old_chunks = {name.split("/")[0] for name in before}
        new = [number for number, key in told["keys"].items() if key not in old_chunks]
    return [
        [f"killed {killed} times in {kills} runs: takes equal the uninterrupted ones", "yes" if same else "NO"],
        ["one line changed: chunks made", f"{len(new)} of {len(told['keys'])}"],
        ["one line changed: all takes before keep their bytes", "yes" if stayed else "NO"],
    ]


def _takes(folder: Path) -> dict[str, bytes]:
    """The codes of all takes of a project."""
    from safetensors.numpy import load_file

    found = {}
    for file in sorted((folder / "chunks").rglob("*.safetensors")):
        found[f"{file.parent.name}/{file.name}"] = load_file(file)["codes"].tobytes()
    return found


def refusals(dia: Dia, rng: random.Random) -> list[list[Any]]:
    """Bad input on the command line: exit code 2, one sentence, no traceback."""
    voice = next(iter(dia.voices.values()))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataclasses.replace(voice, codec="0" * 16).save(folder / "other.voice")
        voice.save(folder / "good.voice")
        (folder / "none").mkdir()
        (folder / "cycle.txt").write_text("blue = red\nred = blue\n")
        good = "[Anna] Good morning. [Ben] Hello."
        cases: dict[str, tuple[str, list[str]]] = {
            "a tag that is not closed": ("[Anna] Hello.\n[Ben Hello.", []),
            "an unknown name": (
                f"{good}\n  [Carl] Hello.",
                ["--cast", f"Anna={folder}/good.voice", f"Ben={folder}/good.voice"],
            ),
            "a voice of another codec": (
                good,
                ["--cast", f"Anna={folder}/other.voice", f"Ben={folder}/good.voice"],
            ),
            "an empty cast": (good, ["--voices", f"{folder}/none"]),
            "1 MB of text": ("[Anna] " + "Good morning. " * 80_000, []),
            "a cyclic pronunciation map": (good, ["--pronunciations", f"{folder}/cycle.txt"]),
            "three speakers without voices": ("[A] One. [B] Two. [C] Three.", []),
        }
        for case, (text, more) in cases.items():
            file = folder / "script.txt"
            file.write_text(text)
            command = [sys.executable, "-m", "dia_jax", "speak", str(file), str(folder / "out"), *more, "--quiet"]
            shutil.rmtree(folder / "out", ignore_errors=True)
            ran = subprocess.run(command, capture_output=True, text=True)
            lines = ran.stderr.strip().splitlines()
            fine = ran.returncode == 2 and len(lines) == 1 and "Traceback" not in ran.stderr
            rows.append([f"refused with code 2 and a sentence: {case}", "yes" if fine else f"NO: {ran.returncode}"])
            rows.append(["", lines[-1].replace(str(folder), "...") if lines else ""])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of scripts, damages and takes")
    parser.add_argument("--turns", type=int, default=190, help="of the podcast: ten minutes")
    parser.add_argument("--clips", type=int, default=200, help="spoilt clips, and as many good ones")
    parser.add_argument("--only", nargs="+", help="some of the checks")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    checks: dict[str, Callable[[Dia, random.Random], list[list[Any]]]] = {
        "refusals": refusals,
        "words": lambda dia, rng: words(dia, rng, clips=options.clips // 4),
        "detectors": lambda dia, rng: detectors(dia, rng, clips=options.clips),
        "joins": joins,
        "speakers": lambda dia, rng: speakers(dia, rng, turns=options.turns // 5),
        "carrying": lambda dia, rng: carrying(dia, rng, turns=options.turns // 2),
        "projects": lambda dia, rng: projects(dia, rng, kills=20),
        "podcast": lambda dia, rng: podcast(dia, rng, turns=options.turns),
    }
    dia = Dia.from_pretrained("tiny")
    about, found = machine() | {"seed": options.seed, "turns": options.turns}, {}
    for name in options.only or checks:
        began = time.perf_counter()
        found[name] = checks[name](dia, random.Random(f"{options.seed} {name}"))
        print(table([name, ""], found[name]), f"\n({time.perf_counter() - began:.0f} s)\n", flush=True)
        path = write_results(options.results, f"long-tiny-{about['device']}", about | found)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
