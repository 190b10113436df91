"""Clips a minute over a list of mixed lengths, beside another version of this package, and what a batch does to others.

    python benchmarks/batch.py                                       # 64 clips of the tiny voice, batches of 16
    python benchmarks/batch.py --before OTHER/CHECKOUT --batches 16 5 9 12
    python benchmarks/batch.py --full --clips 8 --batches 4          # Dia-1.6B's sizes, random weights
    python benchmarks/batch.py --small                               # few and short clips, to see that it runs

Each version runs in a process of its own, by its public functions alone, and the two take turns: `git worktree add
OTHER/CHECKOUT COMMIT` makes the other one. Ratios are medians of the rounds'. What compiles is run before and not
counted. "Codec apart" is this version with `generate_codes` for all clips and then the codec clip by clip, so that the
two do not overlap.

Of this version alone:
    idle share: of the time from the first call of the loop to the end of the last one, how much no call was running.
    latecomer: a stream that is asked for while 15 clips run: calls from its admission to its first chunk, and seconds.
    long script: the time until 15 short clips are finished, alone and with a script of 1,024 bytes in the same list.

Writes benchmarks/results/batch-*.json.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WORDS = "the young farmer found this red letter in the kitchen under a window near my house with her brother"
LONG = 1024


def scripts(count: int) -> list[str]:
    """Two turns each, of 2 to 13 words a turn."""
    rng = random.Random(0)

    def turn(words: int) -> str:
        return " ".join(rng.choice(WORDS.split()) for _ in range(words)).capitalize() + "."

    return [f"[S1] {turn(n)} [S2] {turn(n)}" for n in (rng.choice([2, 3, 4, 5, 7, 10, 13]) for _ in range(count))]


# --- The process of one version --------------------------------------------------------------------------------------


def load(full: bool) -> Any:
    from dia_jax import Dia

    if not full:
        return Dia.from_pretrained("tiny")
    from dia_jax import Codec, DacConfig, DiaConfig
    from dia_jax.untrained import random_params

    codec = Codec(DacConfig(), *random_params(DacConfig()))
    return Dia(DiaConfig(), *random_params(DiaConfig()), codec=codec)


def serve() -> None:
    """Reads what to do from standard input, line by line, and answers each with its result."""
    answers, sys.stdout = sys.stdout, sys.stderr
    dia: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        if dia is None:
            dia = load(order["full"])
        began = time.perf_counter()
        result = {"list": make_list, "apart": make_apart, "late": late, "long": long_script, "idle": idle}[order["do"]](
            dia, order
        )
        answers.write(json.dumps({"seconds": time.perf_counter() - began} | (result or {})) + "\n")
        answers.flush()


def options_of(order: dict[str, Any], count: int) -> dict[str, Any]:
    return {"seed": list(range(count)), "batch_size": order["batch"], "max_tokens": order["max_tokens"]}


def make_list(dia: Any, order: dict[str, Any]) -> dict[str, Any]:
    texts = scripts(order["clips"])
    clips = dia.generate(texts, **options_of(order, len(texts)))
    return {"audio_seconds": sum(map(len, clips)) / 44_100}


def make_apart(dia: Any, order: dict[str, Any]) -> None:
    texts = scripts(order["clips"])
    for codes in dia.generate_codes(texts, **options_of(order, len(texts))):
        dia.decode_codes(codes)


def long_script(dia: Any, order: dict[str, Any]) -> dict[str, Any]:
    texts, finished = scripts(15), []
    if order["with_long"]:
        texts.append("[S1] " + ("word " * LONG)[: LONG - 2])
    began = time.perf_counter()

    def on_clip(index: int, codes: Any) -> None:
        if index < 15:
            finished.append(time.perf_counter() - began)

    dia.generate_codes(texts, on_clip=on_clip, **(options_of(order, len(texts)) | {"batch_size": 16}))
    return {"short_finished": max(finished)}


def idle(dia: Any, order: dict[str, Any]) -> dict[str, Any]:
    from dia_jax import loop

    run = loop.decode_chunk
    times: list[list[float]] = []  # when each call was dispatched, and when it ended

    def noted(*args: Any) -> Any:
        state, progress = run(*args)
        entry = [time.perf_counter()]
        times.append(entry)
        threading.Thread(
            target=lambda: (progress.numbers.block_until_ready(), entry.append(time.perf_counter()))
        ).start()
        return state, progress

    loop.decode_chunk = noted
    try:
        make_list(dia, order)
    finally:
        loop.decode_chunk = run
    time.sleep(0.2)
    # Calls run one after another: each begins when it was dispatched or when the one before ended.
    gaps = sum(max(0.0, after[0] - before[1]) for before, after in itertools.pairwise(times))
    return {"idle_share": gaps / (times[-1][1] - times[0][0]), "calls": len(times)}


def late(dia: Any, order: dict[str, Any]) -> dict[str, Any]:
    """A stream alone, and one that comes while 15 clips run."""
    from dia_jax import loop

    def first_chunk() -> float:
        began = time.perf_counter()
        stream = dia.stream(scripts(1)[0], seed=99)
        next(stream)
        took = time.perf_counter() - began
        stream.close()
        return took

    alone = first_chunk()
    running = threading.Event()
    calls = [0]
    run = loop.decode_chunk

    def counted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            running.set()
        return run(*args)

    loop.decode_chunk = counted
    texts = [scripts(20)[-1]] * 15
    thread = threading.Thread(
        target=lambda: dia.generate_codes(texts, **(options_of(order, 15) | {"batch_size": 16, "max_tokens": 400}))
    )
    thread.start()
    running.wait()
    before = calls[0]
    beside = first_chunk()
    made = calls[0] - before
    thread.join()
    loop.decode_chunk = run
    return {"alone": alone, "beside": beside, "calls": made}


# --- The comparison --------------------------------------------------------------------------------------------------


class Version:
    """A checkout in a process of its own."""

    def __init__(self, name: str, path: Path, full: bool, cache: Path):
        self.name, self.full = name, full
        environment = os.environ | {"PYTHONPATH": str(path.resolve()), "JAX_COMPILATION_CACHE_DIR": str(cache / name)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order | {"full": self.full}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name}: the process ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def rounds_of(contenders: dict[str, Any], rounds: int) -> Iterator[tuple[str, float]]:
    for number in range(rounds + 1):
        for name, run in contenders.items():
            seconds = run()["seconds"]
            if number:  # the first round compiles
                yield name, seconds
            print(f"{name}: {seconds:.1f} s{'' if number else ', compiling included'}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of another version")
    parser.add_argument("--batches", nargs="+", type=int, default=[16])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, help="frames of a clip at most; all that fits by default")
    parser.add_argument("--full", action="store_true", help="Dia-1.6B's sizes with random weights")
    parser.add_argument("--small", action="store_true", help="few and short clips, to see that it runs")
    parser.add_argument("--only-list", action="store_true", help="leave out what is measured of this version alone")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    import tempfile

    from common import machine, table, write_results

    if options.small:
        options.clips, options.rounds, options.batches, options.max_tokens = 6, 1, [3], 40
    size = "small" if options.small else "full" if options.full else "tiny"
    with tempfile.TemporaryDirectory() as folder:
        ours = Version("ours", ROOT, options.full, Path(folder))
        before = options.before and Version("before", options.before, options.full, Path(folder))
        rows, results = [], []
        facts, found = machine(), {}

        def write() -> Path:
            """Keeps what has been measured so far, so that a run that is cut off has not been for nothing."""
            name = f"batch-{size}-{facts['device'].replace(' ', '-').lower()}"
            data = {"size": size, "clips": options.clips, "max_tokens": options.max_tokens}
            return write_results(options.results, name, facts | data | {"lists": results, "alone": found})

        for batch in options.batches:
            order = {"clips": options.clips, "batch": batch, "max_tokens": options.max_tokens}
            contenders = {"ours": lambda order=order: ours.ask(do="list", **order)}
            if before:
                contenders["before"] = lambda order=order: before.ask(do="list", **order)
            if batch == options.batches[0]:
                contenders["codec apart"] = lambda order=order: ours.ask(do="apart", **order)
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for name, took in rounds_of(contenders, options.rounds):
                seconds[name].append(took)
            for name, took in seconds.items():
                minute = [60 * options.clips / each for each in took]
                ratios = [other / each for other, each in zip(took, seconds["ours"], strict=True)]
                results.append({"batch": batch, "name": name, "seconds": took, "over_ours": ratios})
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                rows.append([batch, name, f"{statistics.median(minute):.1f}", "" if name == "ours" else spread])
            write()
        print(table(["batch", "", "clips a minute", "ours over it"], rows))
        if not options.only_list:
            order = {"clips": options.clips, "batch": options.batches[0], "max_tokens": options.max_tokens}
            found["idle"] = ours.ask(do="idle", **order)
            for each in (ours, before) if before else (ours,):
                for with_long in (False, True, False, True):  # the first of each compiles
                    found[f"{each.name}, 15 short{' and a long one' * with_long}"] = each.ask(
                        do="long", with_long=with_long, **order
                    )["short_finished"]
            ours.ask(do="late", **order)
            found["latecomer"] = ours.ask(do="late", **order)
            print(json.dumps(found, indent=2))
        ours.close()
        if before:
            before.close()
        print(f"written to {write()}")


if __name__ == "__main__":
    main()
