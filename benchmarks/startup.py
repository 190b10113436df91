"""From the start of a process to its first sound, full size, with the files in the page cache.

    python benchmarks/startup.py
    python benchmarks/startup.py --small      # tiny sizes, to see that it runs

A new process imports dia_jax, loads a checkpoint with its codec from the disk and streams until its first chunk is
there: once with an empty cache of compiled programs, once with the one that this leaves behind. Loading is told beside
reading the same files with nothing done to them. A second stream goes on for four chunks: "once more" is the time to
its first sound, and the longest wait is a listener's, who plays the chunks as they come. The weights are random and
need twice the model's size on the disk. Writes benchmarks/results/startup-*.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import DEVICE, RESULTS, SCRIPT, machine, table, write_results
from parity import configs

from dia_jax import convert, save_params
from dia_jax.checkpoint import dac_from_json, dia_from_json
from dia_jax.untrained import random_params

CHILD = """
import itertools, json, sys, time
began, folder, cache, script, options = sys.argv[1:]
began, options = float(began), json.loads(options)
import jax
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from dia_jax import Dia
jax.devices()
imported = time.time()
dia = Dia.from_pretrained(folder, **options)
jax.block_until_ready(dia.params)
loaded = time.time()
stream = dia.stream(script, seed=0)
next(stream)
first = time.time()
stream.close()
stream = dia.stream(script, seed=0)
began_again = time.time()
heard = wait = 0.0
for chunk in itertools.islice(stream, 4):
    if not heard:
        first_again = time.time()
    wait = max(wait, time.time() - first_again - heard)
    heard += len(chunk) / 44_100
print(json.dumps({
    "import": imported - began, "load": loaded - imported, "first_chunk": first - loaded, "all": first - began,
    "first_chunk_compiled": first_again - began_again, "heard": heard, "longest_wait": wait,
}))
"""


READ = """
import sys, time
from pathlib import Path
import numpy as np
began, size, kept = time.time(), 0, []
for path in sorted(Path(sys.argv[1]).rglob("*")):
    if path.is_file():
        with open(path, "rb", buffering=0) as file:
            for _ in range(0, path.stat().st_size, 1 << 26):
                kept.append(np.empty(1 << 26, np.uint8))
                size += file.readinto(kept[-1])
print(time.time() - began, size)
"""


def read_seconds(folder: Path) -> tuple[float, int]:
    """Seconds and bytes of reading every file of a folder into memory that is kept, in a process of its own.

    Kept, because a model is kept too: the first touch of memory can take longer than the copy from the page cache.
    """
    done = subprocess.run([sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, check=True)
    seconds, size = done.stdout.split()
    return float(seconds), int(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    size = "small" if options.small else "full"
    reference, codec_reference = configs(options.small)
    config = dia_from_json(reference.to_dict())
    codec = dac_from_json(codec_reference.to_dict())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"float32, transformers layout": (Path(temporary) / "float32", {"dtype": "float32"})}
        save_params(folders["float32, transformers layout"][0], config, random_params(config)[1], layout="transformers")
        folders["int8, orbax layout"] = (Path(temporary) / "int8", {})
        convert(Path(temporary) / "float32", Path(temporary) / "int8", quantize="int8")
        for name, (folder, arguments) in folders.items():
            save_params(folder / "dac", codec, random_params(codec)[1], layout="transformers")
            read_seconds(folder)  # into the page cache
            reading, read = read_seconds(folder)
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    command = [sys.executable, "-c", CHILD, str(time.time()), str(folder), cache, SCRIPT]
                    done = subprocess.run(
                        [*command, json.dumps(arguments)], capture_output=True, text=True, check=False, env=os.environ
                    )
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    times = json.loads(done.stdout.splitlines()[-1])
                    row = {"checkpoint": name, "compiled_programs": state, "gb": read / 1e9, "read_seconds": reading}
                    rows.append(row | times)
                    print(rows[-1], flush=True)
    cells = [
        [
            r["checkpoint"],
            r["compiled_programs"],
            f"{r['import']:.1f}",
            f"{r['load']:.1f} ({r['gb'] / r['load']:.2f})",
            f"{r['read_seconds']:.1f} ({r['gb'] / r['read_seconds']:.2f})",
            f"{r['first_chunk']:.1f}",
            f"{r['first_chunk_compiled']:.1f}",
            f"{r['longest_wait']:.1f} in {r['heard']:.1f}",
            f"{r['all']:.1f}",
        ]
        for r in rows
    ]
    header = ["checkpoint", "compiled programs", "import, s", "load, s (GB/s)", "reading alone, s (GB/s)"]
    print(f"\n{size} size, {machine()['device']} ({DEVICE} for torch)\n")
    print(table([*header, "then first sound, s", "once more, s", "longest wait, s", "start to first sound, s"], cells))
    name = f"startup-{size}-{machine()['device'].replace(' ', '-').lower()}"
    print(f"written to {write_results(options.results, name, machine() | {'rows': rows})}")


if __name__ == "__main__":
    main()
