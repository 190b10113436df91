"""Full-size speed beside `transformers`, alternating in one process: ms a step, the floor, compile time, memory.

    python benchmarks/speed.py                      # float32 on a CPU, bfloat16 on a GPU
    python benchmarks/speed.py --dtype float32
    python benchmarks/speed.py --small              # tiny sizes, to see that it runs

A step is one row of the grid for one clip (two rows of guidance). The floor is the bytes that a step must read (decoder
weights and caches) over the bandwidth measured in the same run. Both sides draw (temperature 1.2, top-p 0.95, top-k 45)
from random weights, and both are timed over the same number of steps, with the first steps of each left out.
`transformers` runs as its documentation says, without torch.compile. Writes benchmarks/results/speed-*.json.
"""

import argparse
import gc
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from common import DEVICE, RESULTS, SCRIPT, TORCH_DTYPES, bandwidth, machine, reference_dia, table, write_results
from flax import nnx
from parity import configs, delayed

from dia_jax import Dia, DiaConfig, dac
from dia_jax.config import DacConfig
from dia_jax.decode import decode_chunk, prefill
from dia_jax.pipeline import check_settings
from dia_jax.small import random_params
from dia_jax.text import encode_text

FRAME_RATE = 44_100 / 512


class StepTimes(transformers.StoppingCriteria):
    """Notes the time at each step of `transformers`' loop."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def time_reference(model: transformers.DiaForConditionalGeneration, steps: int) -> float:
    """Seconds a step, from the third on."""
    tokens = encode_text(SCRIPT, max_length=1024).astype(np.int64)
    start = delayed(np.zeros((0, 9), np.int64), model.config)
    times = StepTimes()
    model.generate(
        input_ids=torch.tensor(tokens[None], device=DEVICE),
        attention_mask=torch.ones((1, len(tokens)), dtype=torch.long, device=DEVICE),
        decoder_input_ids=start,
        decoder_attention_mask=torch.ones(start.shape[:2], dtype=torch.long, device=DEVICE),
        max_new_tokens=steps + 16,
        do_sample=True,
        temperature=1.2,
        top_p=0.95,
        top_k=45,
        guidance_scale=3.0,
        stopping_criteria=[times],
    )
    taken = np.diff(times.times[2 : steps + 2])
    return float(taken.mean())


class Ours:
    """One clip, compiled on first use; times chunks that carry the same clip on."""

    def __init__(self, config: DiaConfig, graphdef: nnx.GraphDef, params: nnx.State, *, max_tokens: int | None):
        self.dia = Dia(config, graphdef, params)
        self.clips = self.dia._clips(SCRIPT, None, max_tokens, 0, False)
        self.settings = check_settings(3.0, 1.2, 0.95, 45)
        self.compile_seconds = 0.0
        for first in (True, False):
            began = time.perf_counter()
            state = self.start()
            state = self.run(state, 1)
            took = time.perf_counter() - began
            self.compile_seconds = took if first else self.compile_seconds - took
        self.cache_bytes = sum(x.nbytes for x in jax.tree.leaves((state.cache, state.cross)))

    def start(self) -> Any:
        state = prefill(self.dia.graphdef, self.dia.params, self.dia.config, self.clips)
        return jax.block_until_ready(state)

    def run(self, state: Any, steps: int) -> Any:
        state = decode_chunk(self.dia.graphdef, self.dia.params, state, self.settings, np.int32(steps))
        return jax.block_until_ready(state)

    def seconds_a_step(self, steps: int) -> float:
        state = self.run(self.start(), 2)
        row = int(state.row[0])
        began = time.perf_counter()
        state = self.run(state, steps)
        took = time.perf_counter() - began
        return took / (int(state.row[0]) - row)


def time_codec(config: DacConfig, frames: int = 256) -> tuple[float, float]:
    """Seconds of compiling and of decoding `frames` frames."""
    codec = random_params(config)
    codes = np.random.default_rng(0).integers(0, config.codebook_size, (frames, config.num_codebooks))
    took = []
    for _ in range(3):
        began = time.perf_counter()
        dac.decode_codes(codec, codes, config=config)
        took.append(time.perf_counter() - began)
    return took[0] - min(took[1:]), min(took[1:])


def peak_memory() -> dict[str, float]:
    memory = {"host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    stats = jax.devices()[0].memory_stats()
    if stats:
        memory["jax_device_gb"] = stats["peak_bytes_in_use"] / 1e9
    if DEVICE == "cuda":
        memory["torch_device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=TORCH_DTYPES, default="bfloat16" if DEVICE == "cuda" else "float32")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--steps", type=int, default=200 if DEVICE == "cuda" else 20, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5, help="times that the two alternate")
    parser.add_argument("--max-tokens", type=int, default=None, help="budget of the clip; sets our cache's size")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    size = "small" if options.small else "full"
    reference_config, codec_config = configs(options.small)
    config = DiaConfig.from_json(reference_config.to_dict())

    read = bandwidth()
    reference = reference_dia(reference_config).to(TORCH_DTYPES[options.dtype])
    gc.collect()
    ours = Ours(config, *random_params(config, dtype=options.dtype), max_tokens=options.max_tokens)
    # A step looks up a few rows of the embeddings, but reads every other weight of the decoder, save the
    # cross-attention's keys and values, which are computed once.
    flat = {".".join(map(str, p)): v for p, v in nnx.to_flat_state(ours.dia.params)}
    idle = (".cross_attention.k_proj.", ".cross_attention.v_proj.", "decoder.embeddings.")
    step_weights = [v for p, v in flat.items() if p.startswith("decoder.") and not any(part in p for part in idle)]
    step_bytes = sum(v.size * v.dtype.itemsize for v in step_weights)
    floor = (step_bytes + ours.cache_bytes) / read

    ours_times, reference_times = [], []
    for round_number in range(options.rounds):
        ours_times.append(ours.seconds_a_step(options.steps))
        reference_times.append(time_reference(reference, options.steps))
        print(f"round {round_number + 1}: {ours_times[-1] * 1e3:.2f} and {reference_times[-1] * 1e3:.2f} ms a step")
    ratios = [b / a for a, b in zip(ours_times, reference_times, strict=True)]
    mine, theirs = statistics.median(ours_times), statistics.median(reference_times)
    codec_compile, codec_seconds = time_codec(DacConfig.from_json(codec_config.to_dict()))
    results = {
        "size": size,
        "dtype": options.dtype,
        "steps": options.steps,
        "rounds": options.rounds,
        "cache_rows": int(ours.start().grid.shape[1]),
        "ms_a_step": {"ours": mine * 1e3, "transformers": theirs * 1e3},
        "rounds_ms": {"ours": [t * 1e3 for t in ours_times], "transformers": [t * 1e3 for t in reference_times]},
        "transformers_over_ours": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "bandwidth_gb_s": read / 1e9,
        "bytes_a_step": step_bytes + ours.cache_bytes,
        "floor_ms": floor * 1e3,
        "measured_over_floor": mine / floor,
        "realtime_factor": {"ours": 1 / mine / FRAME_RATE, "transformers": 1 / theirs / FRAME_RATE},
        "compile_seconds": {"prefill_and_loop": ours.compile_seconds, "codec": codec_compile},
        "codec_realtime_factor": 256 / FRAME_RATE / codec_seconds,
        "peak_memory_both_sides": peak_memory(),
    }
    print(f"\n{size} size, {options.dtype}, {machine()['device']} ({machine()['cpu']}, {machine()['cores']} cores)\n")
    rows = [
        ["ms a step", f"{mine * 1e3:.2f}", f"{theirs * 1e3:.2f}"],
        ["times real time, one clip", f"{1 / mine / FRAME_RATE:.3f}", f"{1 / theirs / FRAME_RATE:.3f}"],
        ["floor, ms a step", f"{floor * 1e3:.2f}", ""],
        ["measured over floor", f"{mine / floor:.2f}", f"{theirs / floor:.2f}"],
        ["compile, s (not in the above)", f"{ours.compile_seconds:.1f}", "0"],
        ["codec, times real time", f"{results['codec_realtime_factor']:.2f}", ""],
    ]
    print(table(["", "ours", "transformers"], rows))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"\ntransformers over ours, round by round: {statistics.median(ratios):.2f} ({spread})")
    print(
        f"{(step_bytes + ours.cache_bytes) / 1e9:.3f} GB a step at {read / 1e9:.1f} GB/s; peak memory {peak_memory()}"
    )
    device = machine()["device"].replace(" ", "-").lower()
    print(f"written to {write_results(options.results, f'speed-{size}-{options.dtype}-{device}', machine() | results)}")


if __name__ == "__main__":
    main()
