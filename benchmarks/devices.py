"""How a list is shared by several devices, and what that costs to compile.

    python benchmarks/devices.py                       # eight forced CPU devices, 64 clips of the tiny voice
    python benchmarks/devices.py --devices 0           # the accelerators that are there
    python benchmarks/devices.py --model 2             # groups of two that share each clip

Prints for each device or group the clips and frames that it decoded and how long it ran without a clip while others had
some, then what compiling took beside one device, and a latecomer: the time to the first chunk of a stream that is asked
for while all devices are busy. Forced CPU devices share the cores of the machine, so that their times say nothing of
the speed of real ones. Writes benchmarks/results/devices-*.json.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def run(options: argparse.Namespace, devices: Any) -> dict[str, Any]:
    import numpy as np
    from batch import scripts
    from jax.sharding import AxisType, Mesh

    from dia_jax import Dia

    grid = np.array(devices).reshape(-1, options.model)
    mesh = Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    dia = Dia.from_pretrained(options.checkpoint, mesh=mesh)
    began = time.perf_counter()
    texts = scripts(options.clips)
    dia.warmup(max(texts, key=len), batch_size=options.batch, max_tokens=options.max_tokens)
    compiled = time.perf_counter() - began
    clips, frames = [0] * len(grid), [0] * len(grid)
    ends = [0.0] * len(grid)

    def watch(number: int, loop: Any, take: Any) -> Any:
        def counted(_: Any, live: Any) -> Any:
            jobs, capacity = take(loop, live)
            clips[number] += len(jobs)
            for job in jobs:
                job.add_done_callback(lambda job: ended(number, job))
            return jobs, capacity

        return counted

    def ended(number: int, job: Any) -> None:
        frames[number] += len(job.codes)
        ends[number] = time.perf_counter()

    for number, loop in enumerate(dia.engine.loops):
        loop._take = watch(number, loop, loop._take)
    settings = {"batch_size": options.batch, "max_tokens": options.max_tokens}
    began = time.perf_counter()
    dia.generate_codes(texts, seed=list(range(len(texts))), **settings)
    seconds = time.perf_counter() - began
    found = {"compile_s": compiled, "list_s": seconds, "clips": list(clips), "frames": list(frames)}
    # A device that has ended while others run has nothing left to take.
    found["idle_share"] = [1 - (end - began) / seconds for end in ends]
    thread = threading.Thread(target=dia.generate_codes, args=(texts,), kwargs={"seed": 0, **settings})
    thread.start()
    time.sleep(0.2 * seconds)
    began = time.perf_counter()
    stream = dia.stream(texts[0], seed=1)
    next(stream)
    found["latecomer_s"] = time.perf_counter() - began
    stream.close()
    thread.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8, help="forced CPU devices; 0 takes the devices that are there")
    parser.add_argument("--model", type=int, default=1, help="devices that share each clip")
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="clips on a device")
    parser.add_argument("--max-tokens", type=int, default=172)
    parser.add_argument("--small", action="store_true", help="two devices, few and short clips, to see that it runs")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.small:
        options.devices, options.clips, options.batch, options.max_tokens = 2, 4, 2, 20
    if options.devices:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    import jax
    from common import machine, table, write_results

    devices = jax.local_devices()
    results = {}
    for name, chosen in (("one group", devices[: options.model]), ("all", devices)):
        results[name] = run(options, chosen)
        print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
    found, one = results["all"], results["one group"]
    cells = zip(found["clips"], found["frames"], found["idle_share"], strict=True)
    print(
        table(["device", "clips", "frames", "idle share"], [[i, c, f, f"{s:.2f}"] for i, (c, f, s) in enumerate(cells)])
    )
    rows = [
        [name, *(f"{each[key]:.1f}" for each in (one, found))]
        for name, key in (
            ("compiling, s", "compile_s"),
            ("the list, s", "list_s"),
            ("a latecomer's first chunk, s", "latecomer_s"),
        )
    ]
    print(table(["", "one", "all"], rows))
    kind = "small" if options.small else devices[0].device_kind.replace(" ", "-").lower()
    kept = machine() | {"devices": len(devices), "model": options.model, "results": results}
    print(f"written to {write_results(options.results, f'devices-{kind}', kept)}")


if __name__ == "__main__":
    main()
