"""Full-size speed of a decode step beside the floor that memory sets, `transformers` and the reference's own code.

    python benchmarks/speed.py                                   # what this machine's memory allows for
    python benchmarks/speed.py --reference CLONE                 # with nari-labs/dia too, in a clone that you name
    python benchmarks/speed.py --variants float32 --other-dtypes float32 --batches 1 4
    python benchmarks/speed.py --small                           # tiny sizes, to see that it runs

A step is one row of the grid for every clip of the batch (two rows of guidance a clip). Its floor is the bytes that it
must read (decoder kernels, and all of both caches) over the bandwidth measured in the same run. Clips have a budget of
1,008 frames: the reference's cache has 1,024 rows, ours begins with 512, that of transformers with none (on a GPU it is
static). All draw from random weights (temperature 1.2, top-p 0.95, top-k 45).

Our variants come first. Then each of the others, in each dtype, stands in memory together with our first and our last
variant, and they take turns, round by round; ratios are medians of the rounds'. The first two steps of each turn are
not counted. A pair that ends is freed before the next one begins. Compiling is told apart. What has been measured is
written after each batch size, so that a run that is broken off loses little. The reference runs with pydantic installed
and without torchaudio, which it imports but does not need here.

Writes benchmarks/results/speed-*.json.
"""

import argparse
import gc
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from common import DEVICE, RESULTS, SCRIPT, TORCH_DTYPES, bandwidth, machine, reference_dia, table, write_results
from flax import nnx
from parity import configs, delayed

from dia_jax import Codec, Dia, DiaConfig
from dia_jax.checkpoint import dac_from_json, dia_from_json, dia_to_json
from dia_jax.decode import FIRST_SIZE, decode_chunk, prefill, step_bytes, steps_per_call, text_size, unconditional
from dia_jax.devices import default_dtype
from dia_jax.slots import empty_state, insert
from dia_jax.text import encode_text
from dia_jax.untrained import random_params

FRAME_RATE = 44_100 / 512
FRAMES = 1008
SETTLE = 2


class Enough(Exception):
    """All steps that were to be timed have run."""


class StepTimes(transformers.StoppingCriteria):
    """Notes the time at each step of a loop of torch's, and breaks it off after some."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.times: list[float] = []

    def note(self) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if len(self.times) > SETTLE + self.steps:
            raise Enough

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.note()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def seconds_a_step(self, run: Callable[[], Any]) -> float:
        try:
            run()
        except Enough:
            pass
        else:
            raise RuntimeError("The loop ended before all steps were timed.")
        return (self.times[-1] - self.times[SETTLE]) / self.steps


class Transformers:
    """`transformers`, as its documentation says; on a GPU with its static cache, eager or compiled."""

    def __init__(self, config: transformers.DiaConfig, dtype: str, *, compiled: bool):
        self.name = f"transformers {dtype}"
        self.settings: dict[str, Any] = {}
        if DEVICE == "cuda":
            self.name += f", static cache, {'compiled' if compiled else 'eager'}"
            self.settings = {"cache_implementation": "static", "disable_compile": not compiled}
        self.model = reference_dia(config).to(TORCH_DTYPES[dtype])
        self.use_compile, self.compile_seconds = compiled, 0.0
        self.compiled: set[int] = set()

    @torch.no_grad()
    def seconds_a_step(self, steps: int, batch: int) -> float:
        if self.use_compile and batch not in self.compiled:
            self.compiled.add(batch)
            began = time.perf_counter()
            self.seconds_a_step(1, batch)
            self.compile_seconds = max(self.compile_seconds, time.perf_counter() - began)
        tokens = np.tile(encode_text(SCRIPT, max_length=1024).astype(np.int64), (batch, 1))
        start = delayed(np.zeros((0, 9), np.int64), self.model.config).repeat(batch, 1, 1)
        times = StepTimes(steps)
        return times.seconds_a_step(
            lambda: self.model.generate(
                input_ids=torch.tensor(tokens, device=DEVICE),
                attention_mask=torch.ones(tokens.shape, dtype=torch.long, device=DEVICE),
                decoder_input_ids=start,
                decoder_attention_mask=torch.ones(start.shape[:2], dtype=torch.long, device=DEVICE),
                max_new_tokens=FRAMES + 16,
                do_sample=True,
                temperature=1.2,
                top_p=0.95,
                top_k=45,
                guidance_scale=3.0,
                stopping_criteria=[times],
                **self.settings,
            )
        )


class Reference:
    """nari-labs/dia, eager or with its own torch.compile."""

    def __init__(self, clone: Path, config: transformers.DiaConfig, dtype: str, *, compiled: bool):
        sys.path.insert(0, str(clone))
        sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
        from dia.config import DiaConfig as ReferenceConfig
        from dia.model import Dia as ReferenceDia

        self.name = f"nari-labs/dia {dtype}, {'compiled' if compiled else 'eager'}"
        self.use_compile, self.compile_seconds = compiled, 0.0
        self.compiled: set[int] = set()
        flat = dia_to_json(dia_from_json(config.to_dict()))
        self.model = ReferenceDia(ReferenceConfig(**flat), dtype, torch.device(DEVICE), load_dac=False)
        self.model.model.to(DEVICE)
        with torch.no_grad():
            for parameter in self.model.model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.02)

    def seconds_a_step(self, steps: int, batch: int) -> float:
        import dia.state

        began = time.perf_counter()
        times = StepTimes(steps)
        prepare = dia.state.DecoderInferenceState.prepare_step

        def noted(state: Any, *args: Any, **kwargs: Any) -> Any:
            times.note()
            return prepare(state, *args, **kwargs)

        dia.state.DecoderInferenceState.prepare_step = noted
        try:
            seconds = times.seconds_a_step(
                lambda: self.model.generate(
                    [SCRIPT] * batch, max_tokens=FRAMES + 16, use_torch_compile=self.use_compile, temperature=1.2
                )
            )
        finally:
            dia.state.DecoderInferenceState.prepare_step = prepare
        if self.use_compile and batch not in self.compiled:
            self.compiled.add(batch)
            self.compile_seconds = max(self.compile_seconds, time.perf_counter() - began)
            return self.seconds_a_step(steps, batch)
        return seconds


class Ours:
    """dia_jax: chunks that carry the same clips on."""

    def __init__(self, config: DiaConfig, variant: str, codec: Codec):
        self.name = f"dia_jax {variant}"
        dtype = default_dtype(jax.devices()[0]) if variant == "int8" else variant
        graphdef, params = random_params(config, dtype=dtype)
        if variant == "int8":
            model = nnx.merge(graphdef, params)
            model.quantize()
            graphdef, params = nnx.split(model)
        self.dia = Dia(config, graphdef, params, codec=codec)
        self.weights = graphdef, params, unconditional(graphdef, params)
        self.compile_seconds = 0.0
        self.compiled: set[int] = set()

    def start(self, batch: int) -> Any:
        dia = self.dia
        drafts = dia._drafts([SCRIPT] * batch, {"max_tokens": FRAMES, "seed": list(range(batch))})
        requests = list(dia._requests(drafts))
        size = text_size(len(requests[0].text), dia.config)
        dtype = dia.params["decoder"]["embeddings"]["embedding"].dtype  # pyrefly: ignore
        state = empty_state(dia.config, slots=batch, cache=FIRST_SIZE, text=size, dtype=np.dtype(dtype))
        for slot, request in enumerate(requests):
            prefilled = prefill(*self.weights, dia.config, request, size=size)
            state = insert(state, prefilled, request, slot, config=dia.config)
        return self.run(state, SETTLE)

    def run(self, state: Any, steps: int) -> Any:
        for done in range(0, steps, longest := steps_per_call(self.dia.config)):
            state = decode_chunk(*self.weights, state, np.int32(min(steps - done, longest)))[0]
        return jax.block_until_ready(state)

    def seconds_a_step(self, steps: int, batch: int) -> float:
        if batch not in self.compiled:
            took = []
            for _ in range(2):
                began = time.perf_counter()
                state = self.start(batch)
                took.append(time.perf_counter() - began)
            self.compiled.add(batch)
            self.compile_seconds = max(self.compile_seconds, took[0] - took[1])
            del state
        state = self.start(batch)
        self.bytes = step_bytes(self.dia.params, state)
        position = int(state.slots.position[0])
        began = time.perf_counter()
        state = self.run(state, steps)
        took_all = time.perf_counter() - began
        return took_all / (int(state.slots.position[0]) - position)

    def first_audio(self) -> float:
        """Seconds from asking for a stream to its first chunk, everything compiled."""
        took = []
        for _ in range(2):
            began = time.perf_counter()
            stream = self.dia.stream(SCRIPT, seed=0, max_tokens=FRAMES)
            next(stream)
            took.append(time.perf_counter() - began)
            stream.close()  # pyrefly: ignore
        return took[-1]


def alternate(contenders: list[Any], *, batch: int, steps: int, rounds: int) -> list[list[float]]:
    """Seconds a step of each contender, round by round."""
    times: list[list[float]] = [[] for _ in contenders]
    for number in range(rounds):
        for contender, taken in zip(contenders, times, strict=True):
            taken.append(contender.seconds_a_step(steps, batch))
        text = ", ".join(f"{c.name} {t[-1] * 1e3:.1f}" for c, t in zip(contenders, times, strict=True))
        print(f"batch {batch}, round {number + 1}, ms a step: {text}", file=sys.stderr, flush=True)
    return times


def time_codec(codec: Codec, frames: int = 256) -> dict[str, float]:
    codes = np.random.default_rng(0).integers(0, codec.config.codebook_size, (frames, codec.config.num_codebooks))
    took = []
    for _ in range(3):
        began = time.perf_counter()
        codec.decode(codes)
        took.append(time.perf_counter() - began)
    return {"compile_seconds": took[0] - min(took[1:]), "realtime_factor": frames / FRAME_RATE / min(took[1:])}


def peak_memory() -> dict[str, float]:
    memory = {"host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    stats = jax.devices()[0].memory_stats()
    if stats:
        memory["jax_device_gb"] = stats["peak_bytes_in_use"] / 1e9
    if DEVICE == "cuda":
        memory["torch_device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return memory


def free() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def measure(
    *,
    small: bool,
    variants: Sequence[str] | None = None,
    other_dtypes: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    steps: int | None = None,
    rounds: int | None = None,
    reference: Path | None = None,
    save: Callable[[dict[str, Any]], Any] = lambda results: None,
) -> dict[str, Any]:
    """Times our variants, and each other contender beside two of them.

    Args:
        small: tiny sizes.
        variants: ours; the first and the last one meet the others. None, here and below: as suits this device.
        other_dtypes: of the others.
        batches: clips that are decoded together.
        steps: of a turn.
        rounds: turns of each contender.
        reference: a clone of nari-labs/dia.
        save: called with what has been measured so far, after each batch size.

    Returns:
        what is written as JSON, less the machine.
    """
    accelerated = jax.default_backend() != "cpu"
    usual = default_dtype(jax.devices()[0])
    variants = variants or ([usual, "int8"] if accelerated else ["float32", "bfloat16", "int8"])
    other_dtypes = other_dtypes or ([usual] if accelerated else ["float32", "bfloat16"])
    batches = batches or ([1, 4, 16, 64] if accelerated else [1, 4])
    steps = steps or (200 if accelerated else 12)
    rounds = rounds or (5 if accelerated else 4)
    reference_config, codec_config = configs(small)
    config = dia_from_json(reference_config.to_dict())
    codec_sizes = dac_from_json(codec_config.to_dict())
    codec = Codec(codec_sizes, *random_params(codec_sizes))
    reads = [bandwidth()]
    codec_speed: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []

    def report(ours: Ours, batch: int, times: list[float]) -> None:
        seconds, total = statistics.median(times), sum(ours.bytes.values())
        rows.append(
            {
                "variant": ours.name,
                "batch": batch,
                "bytes": ours.bytes,
                "floor_ms": total / max(reads) * 1e3,
                "ms": seconds * 1e3,
                "rounds_ms": [t * 1e3 for t in times],
                "over_floor": seconds / (total / max(reads)),
                "steps_a_second": 1 / seconds,
                "audio_seconds_a_second": batch / seconds / FRAME_RATE,
                "compile_seconds": ours.compile_seconds,
                "first_audio_seconds": None,
                "peak_memory": peak_memory(),
            }
        )

    def compare(mine: list[Ours], other: Any, batch: int) -> None:
        contenders = [*mine, *([other] if other else [])]
        times = alternate(contenders, batch=batch, steps=steps, rounds=rounds)
        reads.append(bandwidth())
        all_of_it = list(zip(contenders, times, strict=True))
        matches = (
            [(each, all_of_it[-1]) for each in all_of_it[:-1]]
            if other
            else [(all_of_it[0], each) for each in all_of_it[1:]]
        )
        for (ours, mine_took), (contender, taken) in matches:
            ratios = [b / a for a, b in zip(mine_took, taken, strict=True)]
            pairs.append(
                {
                    "batch": batch,
                    "ours": ours.name,
                    "ours_ms": statistics.median(mine_took) * 1e3,
                    "other": contender.name,
                    "other_ms": statistics.median(taken) * 1e3,
                    "other_compile_seconds": contender.compile_seconds,
                    "ratio": statistics.median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                }
            )
        if other is None:
            for ours, taken in zip(mine, times, strict=True):
                report(ours, batch, taken)

    def results() -> dict[str, Any]:
        return {
            "size": "small" if small else "full",
            "steps": steps,
            "rounds": rounds,
            "bandwidth_gb_s": [read / 1e9 for read in reads],
            "rows": rows,
            "pairs": pairs,
            "codec": codec_speed,
            "peak_memory": peak_memory(),
        }

    # Our variants among themselves.
    mine = [Ours(config, variant, codec) for variant in dict.fromkeys(variants)]
    for batch in batches:
        try:
            compare(mine, None, batch)
        except RuntimeError as error:  # a large batch may not fit; what has been measured is kept
            if not rows:
                raise
            print(f"dia_jax, batch {batch}: not measured, {str(error).splitlines()[0]}", file=sys.stderr)
        save(results())
        free()
    # Each of the others beside two of ours, one after another: memory does not hold them all.
    leaders = [mine[0], *mine[1:][-1:]]
    del mine
    free()
    others: list[Callable[[], Any]] = []
    for dtype in other_dtypes:
        if accelerated == (DEVICE == "cuda"):  # on a TPU it would run on the host's CPU
            for compiled in (False, True) if DEVICE == "cuda" else (False,):
                others.append(
                    lambda dtype=dtype, compiled=compiled: Transformers(reference_config, dtype, compiled=compiled)
                )
        for compiled in (False, True) if reference else ():
            others.append(
                lambda dtype=dtype, compiled=compiled: Reference(reference, reference_config, dtype, compiled=compiled)
            )
    for make in others:
        other = make()
        for batch in batches:
            try:
                compare(leaders, other, batch)
            except (RuntimeError, torch.OutOfMemoryError, torch._dynamo.exc.TorchDynamoException) as error:
                print(f"{other.name}, batch {batch}: not measured, {str(error).splitlines()[0]}", file=sys.stderr)
                pairs.append({"batch": batch, "other": other.name, "failed": str(error).splitlines()[0]})
            save(results())
        del other
        free()
    # With the codec last: on a GPU its convolutions take longest to compile.
    codec_speed |= time_codec(codec)
    for ours in leaders:
        seconds = ours.first_audio()
        for row in rows:
            if row["variant"] == ours.name and row["batch"] == 1:
                row["first_audio_seconds"] = seconds
        save(results())
    return results()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="ours; the first and the last one meet the others (default: all, on an accelerator its own and int8)",
    )
    parser.add_argument(
        "--other-dtypes",
        nargs="+",
        choices=TORCH_DTYPES,
        help="of the others (default: float32 bfloat16, on an accelerator its own)",
    )
    parser.add_argument("--batches", nargs="+", type=int, help="default: 1 4, on an accelerator 1 4 16 64")
    parser.add_argument("--reference", type=Path, help="a clone of nari-labs/dia")
    parser.add_argument("--steps", type=int, help="steps a turn (default: 12, on an accelerator 200)")
    parser.add_argument("--rounds", type=int, help="turns of each contender (default: 4, on an accelerator 5)")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = vars(parser.parse_args())
    folder = options.pop("results")
    facts = machine()
    name = f"speed-{'small' if options['small'] else 'full'}-{facts['device'].replace(' ', '-').lower()}"
    results = measure(**options, save=lambda found: write_results(folder, name, facts | found))

    rows, codec_speed = results["rows"], results["codec"]
    read = f"{max(results['bandwidth_gb_s']):.1f} GB/s read"
    print(f"\n{results['size']} size, {facts['device']} ({facts['cpu']}, {facts['cores']} cores), {read}\n")
    cells = []
    for r in rows:
        gb = {name: f"{value / 1e9:.3f}" for name, value in r["bytes"].items()}
        first_audio = "" if r["first_audio_seconds"] is None else f"{r['first_audio_seconds']:.2f}"
        cells.append(
            [
                r["variant"],
                r["batch"],
                " + ".join(gb.values()),
                f"{r['floor_ms']:.2f}",
                f"{r['ms']:.2f}",
                f"{r['over_floor']:.2f}",
                f"{r['steps_a_second']:.2f}",
                f"{r['audio_seconds_a_second']:.3f}",
                f"{r['compile_seconds']:.1f}",
                first_audio,
            ]
        )
    header = [
        "",
        "batch",
        "GB a step: " + " + ".join(rows[0]["bytes"]),
        "floor, ms",
        "ms a step",
        "over floor",
        "steps/s",
    ]
    print(table([*header, "s of audio a s", "compile, s", "first audio, s"], cells))
    print()
    cells = [
        [p["batch"], p["other"], p["failed"], "", "", ""]
        if "failed" in p
        else [
            p["batch"],
            p["other"],
            f"{p['other_ms']:.2f}",
            f"{p['ours']}: {p['ours_ms']:.2f}",
            f"{p['ratio']:.2f} ({p['ratio_min']:.2f} to {p['ratio_max']:.2f})",
            f"{p['other_compile_seconds']:.1f}",
        ]
        for p in results["pairs"]
    ]
    print(table(["batch", "contender", "ms a step", "beside", "contender over the other", "compile, s"], cells))
    print(
        f"\ncodec: {codec_speed['realtime_factor']:.2f} times real time, compile {codec_speed['compile_seconds']:.1f} s"
    )
    print(f"peak memory of the whole run: {results['peak_memory']}")
    print(f"written to {write_results(folder, name, facts | results)}")


if __name__ == "__main__":
    main()
