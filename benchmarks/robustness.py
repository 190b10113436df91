"""Hands damaged and odd input to the library and the command line, and counts what does not end as it should.

    python benchmarks/robustness.py --cases 10000 --seed 0
    python benchmarks/robustness.py --kinds pth orbax     # of the random cases only these kinds
    python benchmarks/robustness.py --only 1234           # one case again; directed ones have names

Random cases damage checkpoints in all layouts, configs, adapters and recordings, and make up scripts, settings and
command lines. Directed cases repeat what an earlier run found. See robustness_cases.py for what counts as a good end.

Knows processes, limits and the table, not the cases. A child process runs one case after the other. It is replaced when
a case hangs (20 s of wall time; on a busy machine give --seconds more), dies, or takes the process beyond 2 GB of
resident memory. An address-space limit is no substitute: JAX reserves far more than it uses. The exit code is 1 if any
case ends in a fault.
"""

import argparse
import collections
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, machine, table, write_results
from robustness_cases import DIRECTED, KINDS, kind_of

CASES = Path(__file__).with_name("robustness_cases.py")
SECONDS = 20.0
MEMORY = 2_000_000_000
STARTUP_SECONDS = 300.0
CASES_PER_PROCESS = 400
"""Compiled programs pile up in a process; a new one starts with none."""
KEPT_FAULTS = 300
"""Faults that are described in the results."""


class Child:
    """A process that runs cases.

    Args:
        bases: the folder of undamaged files.
        work: a folder of its own.
        seed: of the random cases.
        seconds: of wall time that a case may take.
    """

    def __init__(self, bases: Path, work: Path, *, seed: int, seconds: float):
        self.work, self.seconds, self.cases = work, seconds, 0
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        cache = work.with_name("cache")  # of compiled programs, for the processes that follow
        with open(work / "startup", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, CASES, bases, work, str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ
                | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            )
        answer, problem = self._wait(STARTUP_SECONDS)
        if answer != "ready":
            self.end()
            raise RuntimeError(f"The child process does not start ({problem}): {(work / 'startup').read_text()}")

    def run(self, name: str) -> dict[str, str]:
        """Runs one case; if it goes beyond a limit, the process is gone afterwards."""
        self.cases += 1
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n".encode())
        self.process.stdin.flush()
        answer, problem = self._wait(self.seconds)
        if answer is not None:
            return json.loads(answer)
        self.end()
        what = (self.work / "what").read_text(errors="replace")
        last = (self.work / "stderr").read_text(errors="replace")[-300:]
        detail = f"exit code {self.process.returncode} {last}"
        return {"name": name, "outcome": problem, "what": what, "detail": detail}

    def _wait(self, seconds: float) -> tuple[str | None, str]:
        """The next line of the process, or what is wrong."""
        assert self.process.stdout is not None
        end, line = time.monotonic() + seconds, b""
        while time.monotonic() < end:
            ready, _, _ = select.select([self.process.stdout], [], [], 0.05)
            if self._peak() > MEMORY:
                return None, "memory"
            if ready:
                part = os.read(self.process.stdout.fileno(), 1 << 16)
                if not part:
                    self.process.wait()
                    return None, "died"
                line += part
                if line.endswith(b"\n"):
                    return line.decode().strip(), ""
        return None, "hang"

    def _peak(self) -> int:
        """Bytes that were resident at most since the case began; 0 where the system does not say."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """Kills the process."""
        self.process.kill()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="random cases, of all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="wall time that a case may take")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, "directed"], default=[*KINDS, "directed"])
    parser.add_argument("--only", nargs="+", help="numbers or names of cases; nothing is written")
    parser.add_argument("--small", action="store_true", help="60 random cases, none directed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    kinds = [kind for kind in args.kinds if not (args.small and kind == "directed")]
    names = [*DIRECTED, *map(str, range(60 if args.small else args.cases))]
    names = args.only or [name for name in names if kind_of(name) in kinds]

    counts = {kind: collections.Counter() for kind in map(kind_of, names)}
    faults: list[dict[str, str]] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bases, work = Path(folder) / "bases", Path(folder) / "work"
        large = "directed" if any(not name.isdigit() for name in names) else "random"
        subprocess.run([sys.executable, CASES, "bases", bases, large], check=True)
        child = Child(bases, work, seed=args.seed, seconds=args.seconds)
        try:
            for name in names:
                if not child.alive or child.cases >= CASES_PER_PROCESS:
                    child.end()
                    child = Child(bases, work, seed=args.seed, seconds=args.seconds)
                result = child.run(name)
                counts[kind_of(name)][result["outcome"]] += 1
                if args.only:
                    print(json.dumps(result, indent=2), flush=True)
                if result["outcome"] not in ("accepted", "refused"):
                    faults.append(result)
                    detail = " ".join(result["detail"].split())[:160]
                    print(f"{name} ({kind_of(name)}): {result['outcome']}: {result['what']}: {detail}", flush=True)
        finally:
            child.end()

    columns = ["accepted", "refused", *sorted({fault["outcome"] for fault in faults})]
    rows: list[list[Any]] = [[kind, count.total(), *(count[c] for c in columns)] for kind, count in counts.items()]
    rows.append(["all", len(names), *(sum(count[c] for count in counts.values()) for c in columns)])
    print(table(["kind", "cases", *columns], rows))
    print(f"seed {args.seed}, {time.monotonic() - start:.0f} s; --only NUMBER repeats a case")
    if not args.only:
        results = machine() | {
            "seed": args.seed,
            "cases": len(names),
            "faults": len(faults),
            "kinds": {kind: {"cases": count.total(), **count} for kind, count in counts.items()},
            "described": faults[:KEPT_FAULTS],
        }
        print(write_results(args.results, "robustness-small" if args.small else "robustness", results))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
