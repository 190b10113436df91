"""Trains the small voice on one accelerator within a budget of seconds.

    python benchmarks/tiny/fast.py DATA OUT --seconds 300

DATA is what spoken.py makes. Rows are composed in processes beside; a dispatch is several steps, with batches laid out
on the device; lengths are compiled while shorter ones train. The learning rate, the lengths and what is hidden follow
the clock, so that the run ends well whatever the device's speed. Writes the running average of the weights in float16
every tenth of the time or so and at the end, and a line of metrics for every dispatch.
"""

import argparse
import concurrent.futures
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import compose
import jax
import jax.numpy as jnp
import model
import network
import numpy as np
from flax import nnx

from dia_jax import load_params, open_checkpoint
from dia_jax.config import DiaConfig

LENGTHS = (256, 768, 1920)
JUDGED = 768
"""Length of the rows that are judged."""
PLAN = (
    (0.10, {256: 1.0}, 0.50),
    (0.30, {256: 0.4, 768: 0.6}, 0.45),
    (0.60, {256: 0.2, 768: 0.5, 1920: 0.3}, 0.40),
    (0.85, {256: 0.1, 768: 0.5, 1920: 0.4}, 0.30),
    (1.01, {256: 0.1, 768: 0.5, 1920: 0.4}, 0.20),
)
"""Until what share of the time: the share of dispatches of each length, and of history that is hidden."""
GOING_ON = ((1.01, {256: 0.4, 768: 0.5, 1920: 0.1}, 0.15),)
"""The same where training goes on from a voice."""
OWN_HISTORY = 0.4
"""There, the share of the history that the model sampled itself."""
WARMUP = 0.02  # share of the time
TEXT_DROPOUT = 0.1
AVERAGE = 0.997
PART = 15_000_000
"""Bytes of a file at most."""


# --- Optimizer -------------------------------------------------------------------------------------------------------


def orthogonal(matrices: jax.Array) -> jax.Array:
    """Newton-Schulz steps towards the nearest matrices with equal singular values (Muon, Jordan, 2024): [N, a, b]."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.swapaxes(1, 2)
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
    x = x.astype(jnp.bfloat16) if jax.default_backend() == "gpu" else x
    for _ in range(5):
        square = x @ x.swapaxes(1, 2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x if wide else x.swapaxes(1, 2)).astype(jnp.float32)


def has_muon(path: str, value: Any, options: Any) -> bool:
    """Whether Muon trains it: the kernels inside of layers; AdamW has the rest."""
    return options.optimizer == "muon" and ".layers." in path and value.ndim > 1


def initial_state(weights: dict[str, Any], options: Any) -> dict[str, Any]:
    zeros = {path: jnp.zeros_like(value) for path, value in weights.items()}
    squares = {path: jnp.zeros_like(value) for path, value in weights.items() if not has_muon(path, value, options)}
    copy = {path: jnp.array(value) for path, value in weights.items()}
    return {"step": jnp.int32(0), "weights": weights, "mean": zeros, "square": squares, "average": copy}


def update(state: dict[str, Any], gradients: dict[str, Any], rate: jax.Array, options: Any) -> dict[str, Any]:
    """One step of Muon (its updates as large as Adam's, Liu et al., 2025) and AdamW."""
    total = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in gradients.values()))
    clip = jnp.minimum(1.0, 1.0 / (total + 1e-9))
    step = state["step"] + 1
    weights, mean, square, changes = state["weights"], {}, {}, {}
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, gradient in gradients.items():
        gradient = gradient * clip
        if has_muon(path, gradient, options):
            mean[path] = 0.95 * state["mean"][path] + gradient
            flat = (-1, *gradient.shape[-2:])
            groups.setdefault(gradient.shape[-2:], []).append(path)
            changes[path] = (gradient + 0.95 * mean[path]).reshape(flat)
            continue
        mean[path] = 0.9 * state["mean"][path] + 0.1 * gradient
        square[path] = 0.95 * state["square"][path] + 0.05 * jnp.square(gradient)
        scaled = mean[path] / (1 - 0.9**step) / (jnp.sqrt(square[path] / (1 - 0.95**step)) + 1e-8)
        changes[path] = scaled
    for shape, paths in groups.items():
        stacked = orthogonal(jnp.concatenate([changes[path] for path in paths])) * 0.2 * math.sqrt(max(shape))
        first = 0
        for path in paths:
            count = len(changes[path])
            changes[path] = stacked[first : first + count].reshape(weights[path].shape)
            first += count
    decay = jnp.minimum(AVERAGE, (step + 1) / (step + 10))
    new = {}
    for path, value in weights.items():
        kept = 1 - rate * 0.01 if value.ndim > 1 else 1.0
        new[path] = value * kept - rate * changes[path]
    average = {path: old * decay + new[path] * (1 - decay) for path, old in state["average"].items()}
    return {"step": step, "weights": new, "mean": mean, "square": square, "average": average}


# --- Steps -----------------------------------------------------------------------------------------------------------


def cast(weights: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Kernels and embeddings in the compute dtype; norms stay as they are."""
    return {path: value.astype(dtype) if value.ndim > 1 else value for path, value in weights.items()}


def make_steps(config: DiaConfig, length: int, options: Any) -> Any:
    """(state, table, package of rows, rate, alignment weight, history dropout, key) -> (state, mean metrics)."""

    def steps(
        state: Any, table: Any, rows: Any, rate: Any, alignment: Any, history: Any, seed: Any
    ) -> tuple[Any, dict[str, Any]]:
        def one(state: Any, row: Any) -> tuple[Any, Any]:
            batch = network.lay_out(row, table, length, config)
            key = jax.random.fold_in(jax.random.key(seed), state["step"])
            batch = network.hide(
                batch, row["prompt"], key, text=TEXT_DROPOUT, history=history, longest=max(config.delay_pattern)
            )

            if options.base:
                whole, prompt = cast(state["weights"], options.dtype), row["prompt"]
                batch = network.misremember(whole, batch, config, prompt, jax.random.fold_in(key, 1), OWN_HISTORY)

            def loss_of(weights: Any) -> Any:
                whole = cast(weights, options.dtype)
                return network.loss(whole, batch, config, alignment, flash=options.flash)

            (value, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(state["weights"])
            return update(state, gradients, rate, options), parts | {"loss": value}

        state, parts = jax.lax.scan(one, state, rows)
        return state, jax.tree.map(lambda value: value.mean(axis=0), parts)

    return jax.jit(steps, donate_argnums=0)


def make_judge(config: DiaConfig, options: Any) -> Any:
    """(weights, table, rows) -> metrics of rows with nothing hidden, and channel 0's loss with scripts exchanged."""

    def judge(weights: Any, table: Any, rows: Any) -> dict[str, Any]:
        whole = cast(weights, options.dtype)
        batch = network.lay_out(rows, table, JUDGED, config)
        value, parts = network.loss(whole, batch, config, 0.0, flash=options.flash)
        # A script of another length than what is heard would tell more than its words do.
        text = batch["text"]
        other = jnp.where((text > 2) & (jnp.roll(text, 1, axis=0) > 2), jnp.roll(text, 1, axis=0), text)
        wrong = network.loss(whole, batch | {"text": other}, config, 0.0, flash=options.flash)[1]
        return parts | {"loss": value, "another text": wrong["channels"][0]}

    return jax.jit(judge)


def shapes_of(options: Any) -> dict[int, tuple[int, int]]:
    """Steps and rows of a dispatch, by length."""
    return {
        length: (options.steps, rows) for length, rows in compose.lengths(options.lengths, options.positions).items()
    }


def package_shapes(length: int, steps: int, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    size = (steps, rows, compose.width(length))
    return {
        "text": jax.ShapeDtypeStruct(size, jnp.uint8),
        "chunks": jax.ShapeDtypeStruct(size, jnp.int32),
        "prompt": jax.ShapeDtypeStruct(size[:2], jnp.int32),
    }


def compile_steps(config: DiaConfig, state: Any, table: Any, length: int, options: Any) -> Any:
    """Compiles the steps of a length for the shapes that it will see."""
    steps, rows = shapes_of(options)[length]
    number = jax.ShapeDtypeStruct((), jnp.float32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, table))
    lowered = make_steps(config, length, options).lower(
        *shapes, package_shapes(length, steps, rows), number, number, number, jax.ShapeDtypeStruct((), jnp.int32)
    )
    return lowered.compile()


# --- Files -----------------------------------------------------------------------------------------------------------


def load_table(folder: Path) -> np.ndarray:
    """Codes of every chunk, int16 [N, 6, C]; see `spoken.pack`."""
    import lzma

    with lzma.open(folder / "codes.xz") as file:
        raw = file.read()
    count = int((folder / "chunks").read_text())
    channels = model.CONFIG.decoder.num_channels
    size = count * network.FRAMES_PER_BYTE
    low = np.frombuffer(raw, np.uint8, size * channels).reshape(channels, size)
    high = np.frombuffer(raw, np.uint8, size * channels, size * channels).reshape(channels, size)
    codes = (low.astype(np.int16) + 256 * high.astype(np.int16)).T
    return np.ascontiguousarray(codes.reshape(count, network.FRAMES_PER_BYTE, channels))


def save(folder: Path, name: str, weights: dict[str, Any]) -> None:
    """Weights in float16, in as many files as `PART` makes necessary; each is whole or not there."""
    arrays = {path: np.asarray(value, np.float16) for path, value in weights.items()}
    parts, size = [{}], 0
    for path, value in arrays.items():
        if size + value.nbytes > PART:
            parts.append({})
            size = 0
        parts[-1][path] = value
        size += value.nbytes
    for number, part in enumerate(parts):
        unfinished = folder / f"{name}-{number}.part"
        with open(unfinished, "wb") as file:
            np.savez(file, **part)
        os.replace(unfinished, folder / f"{name}-{number}.npz")


def load_weights(folder: Path, name: str) -> dict[str, np.ndarray]:
    """What `save` wrote, in float32."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob(f"{name}-*.npz")):
        with np.load(path) as part:
            found |= {key: part[key].astype(np.float32) for key in part.files}
    return found


def start(folder: Path, base: Path | None) -> dict[str, jax.Array]:
    """The weights to begin with: those of `model.initial`, or of a voice."""
    if base:
        _, weights = load_params(open_checkpoint(base), dtype="float32")
    else:
        weights = model.initial(dict(np.load(folder / "codebooks.npz")))
    return {
        ".".join(map(str, path)): jnp.asarray(value[...], jnp.float32) for path, value in nnx.to_flat_state(weights)
    }


# --- The run ---------------------------------------------------------------------------------------------------------


class Log:
    """Lines of JSON, each written at once."""

    def __init__(self, path: Path, began: float):
        self.path, self.began = path, began

    def __call__(self, **values: Any) -> None:
        line = {"seconds": round(time.monotonic() - self.began, 1)}
        for name, value in values.items():
            value = np.asarray(value).tolist() if not isinstance(value, str) else value
            line[name] = value
        text = json.dumps(line)
        with self.path.open("a") as file:
            print(text, file=file)
        print(text, flush=True)


def planned(progress: float, base: Path | None) -> tuple[dict[int, float], float]:
    """The lengths with their shares, and the history dropout."""
    plan = GOING_ON if base else PLAN
    return next((lengths, history) for until, lengths, history in plan if progress < until)


def learning_rate(progress: float, peak: float) -> float:
    """Up, then flat, then down to a fiftieth in the last 60 % of the time."""
    if progress < WARMUP:
        return peak * max(progress, 0.1 * WARMUP) / WARMUP
    cooled = min(max((progress - 0.4) / 0.6, 0.0), 1.0)
    return peak * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * cooled)))


def is_ready(job: concurrent.futures.Future | None) -> bool:
    """Whether it is compiled; what failed is left out."""
    return job is not None and job.done() and job.exception() is None


def train(options: argparse.Namespace) -> None:
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "log.jsonl", began)
    shapes = shapes_of(options)
    mixture = compose.GOING_ON if options.base else compose.Mixture()
    stream = compose.Stream(options.data, mixture, shapes, options.workers, options.seed)
    log(devices=str(jax.devices()), shapes=str(shapes), optimizer=options.optimizer, rate=options.rate)
    config = model.CONFIG
    table = jax.device_put(load_table(options.data))
    state = initial_state(start(options.data, options.base), options)
    log(event="loaded", chunks=len(table), parameters=sum(value.size for value in state["weights"].values()))

    # Two at a time, the shortest first: training begins with it alone.
    pool = concurrent.futures.ThreadPoolExecutor(2)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    compiled = {
        length: pool.submit(compile_steps, config, abstract, table, length, options) for length in options.lengths
    }
    judged = {
        "known": compose.Composer(options.data, 1, mixture),
        "held out": compose.Composer(options.data, 2, mixture, held_out=True),
    }
    judged = {name: composer.rows(JUDGED, options.judged) for name, composer in judged.items()}
    judge = pool.submit(
        lambda: make_judge(config, options).lower(abstract["average"], table, judged["known"]).compile()
    )
    compiled[options.lengths[0]].result()
    log(event="compiled the first")

    rng = np.random.default_rng(options.seed)
    due = [0.08, 0.15, 0.25, 0.35, 0.5, 0.6, 0.7, 0.85]
    peak, kept, best = options.rate, jax.tree.map(jnp.copy, state), dict.fromkeys(options.lengths, math.inf)
    recent: dict[int, list[float]] = {length: [] for length in options.lengths}
    waiting: list[tuple[int, dict[str, Any], float]] = []
    trained = positions = 0
    first = last = time.monotonic()
    longest = 0.0

    def finish() -> bool:
        """Waits for the oldest dispatch and logs it; whether all is well with it."""
        nonlocal last, longest
        length, metrics, rate = waiting.pop(0)
        metrics = jax.tree.map(np.asarray, metrics)
        now = time.monotonic()
        longest = max(longest, now - last) if trained > 4 * options.steps else 0.0
        speed = shapes[length][0] * shapes[length][1] * length / max(now - last, 1e-9)
        last = now
        channels = [round(float(x), 3) for x in metrics.pop("channels")]
        rounded = {name: round(float(value), 4) for name, value in metrics.items()}
        log(
            step=trained,
            length=length,
            rate=round(rate, 6),
            positions_a_second=round(speed),
            channels=channels,
            **rounded,
        )
        recent[length] = [*recent[length][-7:], rounded["loss"]]
        mean = sum(recent[length]) / len(recent[length])  # a small batch may be hard
        if len(recent[length]) == 8:
            best[length] = min(best[length], mean)
        return mean < best[length] + 1.5  # not where it is NaN

    def look(name: str) -> None:
        if not is_ready(judge):
            return
        for kind, rows in judged.items():
            found = jax.tree.map(np.asarray, judge.result()(state["average"], table, rows))
            log(event=f"judged {name}", rows=kind, **{key: np.round(value, 4) for key, value in found.items()})

    while True:
        # What is under way and the end itself take time, too.
        progress = (time.monotonic() - first) / max(options.seconds - options.ending - (first - began), 1e-9)
        if progress + 1.5 * longest / max(options.seconds, 1e-9) >= 1 or trained >= options.most:
            break
        if due and progress >= due[0]:
            due.pop(0)
            well = [finish() for _ in list(waiting)]
            if all(well):
                kept = jax.tree.map(jnp.copy, state)
            look(f"{progress:.2f}")
            save(options.out, "weights", state["average"])
            log(event="saved")
        lengths, history = planned(progress, options.base)
        ready = {x: share for x, share in lengths.items() if is_ready(compiled.get(x))} or {options.lengths[0]: 1.0}
        length = int(rng.choice(list(ready), p=np.array(list(ready.values())) / sum(ready.values())))
        rate = learning_rate(progress, peak)
        alignment = 0.5 if progress < 0.5 else 0.25
        package = stream.take(length)
        numbers = np.float32(rate), np.float32(alignment), np.float32(history), np.int32(options.seed)
        try:
            state, metrics = compiled[length].result()(state, table, package, *numbers)
            waiting.append((length, metrics, rate))
            well = finish() if len(waiting) > 2 else True
        except RuntimeError as error:
            # A length that does not fit into the device's memory is left out.
            log(event=f"length {length} failed", error=str(error)[:500])
            if length == options.lengths[0]:
                raise
            waiting.clear()
            compiled.pop(length)
            state, well = jax.tree.map(jnp.copy, kept), True
        trained += shapes[length][0]
        positions += shapes[length][0] * shapes[length][1] * length
        if not well:
            # Back to where all was well, and slower.
            while waiting:
                finish()
            state, peak = jax.tree.map(jnp.copy, kept), peak / 2
            recent = {length: [] for length in options.lengths}
            log(event="went back", rate=peak)
    while waiting:
        finish()
    for length, job in compiled.items():
        if job.done() and job.exception() is not None:
            log(event=f"length {length} could not be compiled", error=repr(job.exception())[:500])
    save(options.out, "weights", state["average"])
    log(event="saved", positions=positions, hours=positions * 512 / 44100 / 3600)
    look("at the end")
    stream.close()
    memory = jax.local_devices()[0].memory_stats() or {}
    log(event="end", peak_bytes=memory.get("peak_bytes_in_use", 0))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that spoken.py made")
    parser.add_argument("out", type=Path, help="folder for weights and log")
    parser.add_argument("--seconds", type=float, default=300, help="all in all, from start to end")
    parser.add_argument("--ending", type=float, default=6, help="seconds of these kept for what follows training")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="learning rate at its peak")
    parser.add_argument("--optimizer", choices=("muon", "adam"), default="muon")
    parser.add_argument("--positions", type=int, default=32_768, help="of a step")
    parser.add_argument("--steps", type=int, default=8, help="of a dispatch")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="of rows, in positions")
    parser.add_argument("--judged", type=int, default=64, help="rows of each kind that are judged")
    parser.add_argument("--workers", type=int, default=6, help="processes that compose rows")
    parser.add_argument("--most", type=int, default=1 << 40, help="steps, if these come before the seconds")
    parser.add_argument("--base", type=Path, help="folder of a voice, to go on from its weights")
    parser.add_argument("--flash", action="store_true", help="self-attention by cuDNN")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    train(parser().parse_args())
