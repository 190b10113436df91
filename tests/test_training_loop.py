"""A run: it learns, resumes after kill -9 to the same bits, and gives the same on 1 and on 8 devices."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from orbax.checkpoint import v1 as ocp

from dia_jax import CheckpointError, Dia, DiaConfig, TextError, convert, load_params, open_checkpoint, save_params
from dia_jax.config import DecoderConfig, EncoderConfig
from dia_jax.pipeline import Codec
from dia_jax.training.batches import Dataset, make_batch
from dia_jax.training.folder import RunFolder
from dia_jax.training.loop import train
from dia_jax.training.lora import below_adapters
from dia_jax.training.prepare import Writer
from dia_jax.training.settings import BatchSettings, LossSettings, TrainingError, TrainSettings
from dia_jax.training.step import (
    abstract_state,
    compile_step,
    initial_state,
    make_mesh,
    make_recipe,
    schedule,
    shardings,
)
from dia_jax.untrained import SMALL_DAC, random_params

CONFIG = DiaConfig(
    encoder=EncoderConfig(num_layers=1, hidden_size=32, mlp_size=64, num_heads=2, num_kv_heads=2, head_dim=16),
    decoder=DecoderConfig(
        num_layers=1,
        hidden_size=32,
        mlp_size=64,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        cross_num_heads=2,
        cross_num_kv_heads=2,
        cross_head_dim=16,
    ),
)
SETTINGS = TrainSettings(
    steps=6,
    learning_rate=1e-2,
    warmup_steps=2,
    dtype="float32",
    ema_decay=0.9,
    batch=BatchSettings(positions=512),
    loss=LossSettings(remat=False),
    log_every=3,
    save_every=2,
)


def write_data(folder) -> None:
    """Eight clips of one bucket, each the same frame again and again."""
    rng = np.random.default_rng(0)
    with Writer(folder, SMALL_DAC) as writer:
        for i in range(8):
            codes = np.tile(rng.integers(0, 1024, (1, 9)), (60 + i, 1))
            writer.add(codes, f"[S1] Clip {i}.")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    write_data(folder)
    return folder


def values(folder) -> dict[str, np.ndarray]:
    _, params = load_params(open_checkpoint(folder))
    return {".".join(map(str, path)): np.asarray(value[...]) for path, value in nnx.to_flat_state(params)}


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_what_it_made_loads_everywhere(data, tmp_path):
    settings = dataclasses.replace(SETTINGS, steps=60, ema_decay=0.0, save_every=60)
    made = train(tmp_path / "run", data, settings, base=CONFIG, validation=data)
    noted = lines(tmp_path / "run")
    losses = [line["loss"] for line in noted if "loss" in line]
    assert losses[0] > 6
    assert losses[-1] < 3
    assert noted[-1]["validation_loss"] < 3
    assert len(noted[0]["channels"]) == 9
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000
    convert(made, tmp_path / "theirs", layout="reference", verify=True)
    dia = Dia.from_pretrained(tmp_path / "theirs", load_codec=False)
    assert dia.generate_codes("[S1] Clip 1.", max_tokens=4, seed=0).shape[1] == 9


CHILD = """
import dataclasses, sys
sys.path.insert(0, sys.argv[1])
from test_training_loop import SETTINGS, train
train(sys.argv[2], sys.argv[3], dataclasses.replace(SETTINGS, lora_rank=int(sys.argv[4])), base=sys.argv[5])
"""


@pytest.mark.parametrize("rank", [0, 4])
def test_kill_9_loses_nothing_but_the_steps_since_the_last_checkpoint(data, tmp_path, rank):
    base, run = tmp_path / "base", tmp_path / "run"
    save_params(base, CONFIG, random_params(CONFIG)[1])
    settings = dataclasses.replace(SETTINGS, lora_rank=rank)
    whole = train(tmp_path / "whole", data, settings, base=base)
    command = [sys.executable, "-c", CHILD, os.path.dirname(__file__), str(run), str(data), str(rank), str(base)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    # Killed when the first checkpoint appears, while the next one is on its way or being written.
    while not (run / "checkpoints").exists() or not any(p.name.isdigit() for p in (run / "checkpoints").iterdir()):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (run / whole.name).exists()
    again = train(run, data, settings, base=base)
    if rank:
        assert (again / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    else:
        for path, value in values(whole).items():
            assert values(again)[path].tobytes() == value.tobytes(), path
    clock = {"frames_per_second"}
    strip = [{name: value for name, value in line.items() if name not in clock} for line in lines(run)]
    assert strip == [
        {name: value for name, value in line.items() if name not in clock} for line in lines(tmp_path / "whole")
    ]


def test_a_run_of_other_settings_is_refused(data, tmp_path):
    train(tmp_path / "run", data, dataclasses.replace(SETTINGS, steps=2), base=CONFIG)
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.01 and is 0\.5"):
        train(tmp_path / "run", data, dataclasses.replace(SETTINGS, learning_rate=0.5), base=CONFIG)
    with pytest.raises(TrainingError, match="steps is 0"):
        dataclasses.replace(SETTINGS, steps=0)
    with pytest.raises(TrainingError, match="seed is -1"):
        dataclasses.replace(SETTINGS, seed=-1)
    with Writer(tmp_path / "more", SMALL_DAC) as writer:
        writer.add(np.zeros((60, 9)), "[S1] Something else.")
    with pytest.raises(TrainingError, match="data was"):
        train(tmp_path / "run", tmp_path / "more", dataclasses.replace(SETTINGS, steps=3), base=CONFIG)


def test_float16_is_refused_because_there_is_no_loss_scaling():
    with pytest.raises(TrainingError, match=r"dtype is 'float16'.*train in 'bfloat16' or 'float32'"):
        dataclasses.replace(SETTINGS, dtype="float16")
    with pytest.raises(TrainingError, match="must be one of float32, bfloat16"):
        dataclasses.replace(SETTINGS, dtype="float8")


def test_what_is_there_is_not_lost(data, tmp_path):
    """A folder that is no run, or one without its checkpoints, and a base inside the run's folder."""
    (tmp_path / "project" / "model").mkdir(parents=True)
    with pytest.raises(TrainingError, match="no run"):
        train(tmp_path / "project", data, SETTINGS, base=CONFIG)
    (tmp_path / "project" / "settings.json").write_text('{"theme": "dark"}')
    with pytest.raises(TrainingError, match="no run"):
        train(tmp_path / "project", data, SETTINGS, base=CONFIG)
    assert "dark" in (tmp_path / "project" / "settings.json").read_text()
    train(tmp_path / "old", data, dataclasses.replace(SETTINGS, steps=1), base=CONFIG)
    shutil.rmtree(tmp_path / "old" / "checkpoints")
    with pytest.raises(TrainingError, match="none of its checkpoints"):
        train(tmp_path / "old", data, SETTINGS, base=CONFIG)
    assert lines(tmp_path / "old")
    base = tmp_path / "run" / "model"
    base.parent.mkdir()
    save_params(base, CONFIG, random_params(CONFIG)[1])
    with pytest.raises(TrainingError, match="own folder"):
        train(tmp_path / "run", data, SETTINGS, base=base)
    with pytest.raises(TextError, match="speaker tag"):
        train(tmp_path / "new", data, SETTINGS, base=CONFIG, sample_texts=("Hello.",))
    assert not (tmp_path / "new").exists()


def test_codes_of_another_codec_are_refused(data, tmp_path):
    """Of other sizes, or of other weights, where the data tell by what they were encoded."""
    other = dataclasses.replace(SMALL_DAC, decoder_size=2 * SMALL_DAC.decoder_size)
    for name, config, seed in (("sizes", other, 0), ("own", SMALL_DAC, 0), ("weights", SMALL_DAC, 1)):
        save_params(tmp_path / name, CONFIG, random_params(CONFIG)[1])
        save_params(tmp_path / name / "dac", config, random_params(config, seed=seed)[1])
    encoder = Codec(SMALL_DAC, *random_params(SMALL_DAC)).digest
    with Writer(tmp_path / "data", SMALL_DAC, encoder) as writer:
        writer.add(np.zeros((60, 9)), "[S1] Silence.")
    settings = dataclasses.replace(SETTINGS, steps=1)
    for codes, name in ((data, "sizes"), (tmp_path / "data", "weights")):
        with pytest.raises(TrainingError, match="another codec"):
            train(tmp_path / "run", codes, settings, base=tmp_path / name)
    train(tmp_path / "run", tmp_path / "data", settings, base=tmp_path / "own")


def test_another_base_is_refused(data, tmp_path):
    for seed in (0, 1):
        save_params(tmp_path / str(seed), CONFIG, random_params(CONFIG, seed=seed)[1])
    train(tmp_path / "run", data, dataclasses.replace(SETTINGS, steps=1), base=tmp_path / "0")
    with pytest.raises(TrainingError, match="base was"):
        train(tmp_path / "run", data, SETTINGS, base=tmp_path / "1")


def test_a_model_keeps_its_own_codec(data, tmp_path):
    base = tmp_path / "base"
    save_params(base, CONFIG, random_params(CONFIG)[1])
    save_params(base / "dac", SMALL_DAC, random_params(SMALL_DAC)[1])
    settings = dataclasses.replace(SETTINGS, steps=1)
    for _ in range(2):  # the second time in place of the first
        made = train(tmp_path / "run", data, settings, base=base)
        assert open_checkpoint(made / "dac").config == SMALL_DAC
    assert not [path for path in made.parent.iterdir() if path.name.startswith(".")]


def test_a_loss_that_is_no_number_ends_the_run(data, tmp_path):
    settings = dataclasses.replace(SETTINGS, learning_rate=1e30, warmup_steps=0, clip_norm=1e30)
    with pytest.raises(TrainingError, match=r"is nan at step .*; start a new run with a lower"):
        train(tmp_path / "run", data, settings, base=CONFIG)
    with pytest.raises(TrainingError, match="gradient norm is inf at step 3"):
        RunFolder(tmp_path / "other", {}).log(3, loss=1.0, gradient_norm=float("inf"))


def test_the_learning_rate_rises_and_falls_and_no_update_is_none():
    rates = [float(schedule(SETTINGS)(made)) for made in range(SETTINGS.steps)]
    assert rates[:2] == pytest.approx([5e-3, 1e-2])
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3)


def assert_same_update(one, other) -> None:
    """State and what was noted. Adam's first update takes the scale out of the gradients: its moments hold it."""
    (state, noted), (like, noted_like) = jax.device_get(one), jax.device_get(other)
    assert noted["gradient_norm"] == pytest.approx(noted_like["gradient_norm"], rel=1e-5)
    for a, b in zip(jax.tree.leaves(state.optimizer), jax.tree.leaves(like.optimizer), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), state.trained, like.trained)


ONE_STEP = dataclasses.replace(SETTINGS, learning_rate=1e-3, warmup_steps=0, clip_norm=100.0)


def test_accumulated_batches_are_one_larger_batch(data):
    settings = dataclasses.replace(ONE_STEP, ema_decay=0.0)
    dataset = Dataset(data, CONFIG)
    equal = [dataclasses.replace(item, frames=60) for item in dataset.items]  # as many targets in each half
    recipe, _, frozen = make_recipe(CONFIG, settings)
    mesh = make_mesh(1)
    state = initial_state(recipe, random_params(CONFIG)[1], mesh)
    step = compile_step(recipe, mesh, state, frozen)
    again = jax.tree.map(jax.numpy.copy, state)  # what goes in is gone
    before = jax.device_get(state.trained)
    whole = step(state, frozen, [make_batch(dataset, equal)])
    halves = step(again, frozen, [make_batch(dataset, equal[:4]), make_batch(dataset, equal[4:])])
    assert_same_update(whole, halves)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(whole[0].trained))
    assert min(jax.tree.leaves(moved)) > 5e-4


PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
"""Several devices on two cores beside other tests: one may wait for the others longer than the usual 40 s."""

DEVICES = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from test_training_loop import *
assert len(jax.devices()) == 8
dataset = Dataset(sys.argv[2], CONFIG)
batch = make_batch(dataset, dataset.items)
results = {}
for name, fsdp, devices in (("one", 1, jax.devices()[:1]), ("data", 1, None), ("both", 4, None), ("fsdp", 8, None)):
    recipe, _, frozen = make_recipe(CONFIG, ONE_STEP)
    mesh = make_mesh(fsdp, devices)
    state = initial_state(recipe, random_params(CONFIG)[1], mesh)
    step = compile_step(recipe, mesh, state, frozen)
    results[name] = state, _ = step(state, frozen, [batch])
    if name == "fsdp":
        kernels = [x for x in jax.tree.leaves(state.optimizer) if x.ndim == 2 and min(x.shape) >= 32]
        assert len(kernels) > 20
        assert all(len(x.addressable_shards) == 8 and x.addressable_shards[0].data.size == x.size // 8 for x in kernels)
for name in ("data", "both", "fsdp"):
    assert_same_update(results["one"], results[name])
moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), random_params(CONFIG)[1], jax.device_get(state.trained))
assert min(jax.tree.leaves(moved)) > 5e-4
"""


def test_one_device_and_eight_make_the_same_step(data):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {PATIENT}"}
    command = [sys.executable, "-c", DEVICES, os.path.dirname(__file__), str(data)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import jax
count, number, port, run, data = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6]
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", num_processes=count, process_id=number)
import dataclasses
from test_training_loop import CONFIG, SETTINGS, train
assert len(jax.devices()) == 4
train(run, data, dataclasses.replace(SETTINGS, fsdp=2), base=CONFIG, validation=data)
"""


def test_two_processes_make_what_one_makes(data, tmp_path):
    """Each with two devices, against one with four."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for count in (1, 2):
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count} {PATIENT}"}
        arguments = [str(port), str(tmp_path / str(count)), str(data)]
        children = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, os.path.dirname(__file__), str(count), str(number), *arguments],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        try:
            for child in children:
                _, errors = child.communicate(timeout=300)
                assert child.returncode == 0, errors[-3000:]
        finally:
            for child in children:
                child.kill()
    one, two = (values(tmp_path / name / "model") for name in ("1", "2"))
    for path, value in one.items():
        np.testing.assert_allclose(two[path], value, atol=1e-5, err_msg=path)
    losses = [[line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("1", "2")]
    np.testing.assert_allclose(*losses, atol=1e-4)


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(TrainingError, match="it must divide them"):
        make_mesh(3, list(range(4)))


def test_lora_trains_adapters_alone_and_they_merge_on_loading(data, tmp_path):
    save_params(tmp_path / "base", CONFIG, random_params(CONFIG)[1])
    settings = dataclasses.replace(SETTINGS, lora_rank=4, lora_alpha=8.0, ema_decay=0.0, steps=4, loss=LossSettings())
    made = train(tmp_path / "run", data, settings, base=tmp_path / "base")
    assert {path.name for path in made.iterdir()} == {"adapter.json", "adapter.safetensors"}
    noted = lines(tmp_path / "run")
    assert noted[-1]["loss"] < noted[0]["loss"]

    # The merged model is the trained one.
    recipe, trained, frozen = make_recipe(CONFIG, settings)
    kernels = {path: value for path, value in values(tmp_path / "base").items() if path.endswith("_proj.weight")}
    merged = Dia.from_pretrained(tmp_path / "base", adapter=made, load_codec=False)
    changed = {".".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(merged.params)}
    assert all(not np.array_equal(changed[path], kernel) for path, kernel in kernels.items())
    np.testing.assert_array_equal(
        changed["decoder.logits_dense.weight"], values(tmp_path / "base")["decoder.logits_dense.weight"]
    )

    from safetensors.numpy import load_file

    adapters = load_file(made / "adapter.safetensors")
    state = nnx.from_flat_state(
        [(p, v.replace(adapters[".".join(map(str, p))])) for p, v in nnx.to_flat_state(trained)]
    )
    below = below_adapters(load_params(open_checkpoint(tmp_path / "base"))[1], frozen)
    dataset = Dataset(data, CONFIG)
    batch = make_batch(dataset, dataset.items[:2])
    beside = recipe.model(state, below)(batch["text"], batch["grid"][:, :-1])
    inside = nnx.merge(merged.graphdef, merged.params)(batch["text"], batch["grid"][:, :-1])
    np.testing.assert_allclose(beside, inside, atol=1e-4)


def test_an_adapter_of_another_model_is_refused(data, tmp_path):
    save_params(tmp_path / "base", CONFIG, random_params(CONFIG)[1])
    settings = dataclasses.replace(SETTINGS, lora_rank=2, steps=1, ema_decay=0.0)
    made = train(tmp_path / "run", data, settings, base=tmp_path / "base")
    other = dataclasses.replace(CONFIG, encoder=dataclasses.replace(CONFIG.encoder, mlp_size=96))
    save_params(tmp_path / "other", other, random_params(other)[1])
    with pytest.raises(CheckpointError, match="does not go with this model"):
        Dia.from_pretrained(tmp_path / "other", adapter=made, load_codec=False)
    with pytest.raises(CheckpointError, match="not a usable adapter"):
        Dia.from_pretrained(tmp_path / "base", adapter=tmp_path / "nothing", load_codec=False)
    convert(tmp_path / "base", tmp_path / "int8", quantize="int8")
    with pytest.raises(CheckpointError, match="int8"):
        Dia.from_pretrained(tmp_path / "int8", adapter=made, load_codec=False)


def test_bfloat16_computes_over_float32_weights(data, tmp_path):
    settings = dataclasses.replace(SETTINGS, dtype="bfloat16", steps=4, loss=LossSettings(remat=True))
    made = train(tmp_path / "run", data, settings, base=CONFIG)
    assert open_checkpoint(made).dtype == "float32"
    noted = lines(tmp_path / "run")
    assert noted[-1]["loss"] < noted[0]["loss"]
    exact = dataclasses.replace(settings, dtype="float32", steps=2)
    train(tmp_path / "exact", data, exact, base=CONFIG)
    assert lines(tmp_path / "exact")[0]["loss"] != noted[0]["loss"]
    assert lines(tmp_path / "exact")[0]["loss"] == pytest.approx(noted[0]["loss"], abs=0.05)


def test_the_average_runs_over_the_weights(data):
    """Recomputed over three updates; the decay starts low, or the average would be that of the initial weights."""
    recipe, _, _ = make_recipe(CONFIG, SETTINGS)
    state = initial_state(recipe, random_params(CONFIG)[1], make_mesh(1))
    expected = jax.device_get(state.trained)
    for decay in (1 / 10, 2 / 11, 3 / 12):
        state, _ = recipe.update(state, jax.tree.map(jax.numpy.ones_like, state.trained))
        new = jax.device_get(state.trained)
        expected = jax.tree.map(lambda old, new, decay=decay: old * decay + new * (1 - decay), expected, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, state.average)


def test_the_average_is_what_is_saved(data, tmp_path):
    made = train(tmp_path / "run", data, SETTINGS, base=CONFIG)
    recipe, trained, _ = make_recipe(CONFIG, SETTINGS)
    with contextlib.closing(ocp.training.Checkpointer(str(tmp_path / "run" / "checkpoints"))) as manager:
        state = manager.load(SETTINGS.steps, abstract_state(recipe, trained, make_mesh(1)))
    saved = load_params(open_checkpoint(made))[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(saved), jax.device_get(state.average))
    different = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.average, state.trained)
    assert all(jax.tree.leaves(different))


def test_shardings_spread_the_longest_axis():
    mesh = AbstractMesh((1, 4), ("data", "fsdp"))
    wanted = {
        (64, 128): PartitionSpec(None, "fsdp"),
        (128, 64): PartitionSpec("fsdp", None),
        (130, 64): PartitionSpec(None, "fsdp"),  # 4 does not divide the longest
        (16, 128): PartitionSpec(),  # an adapter
        (128,): PartitionSpec(),  # a norm
    }
    tree = {shape: jax.ShapeDtypeStruct(shape, np.float32) for shape in wanted}
    assert {shape: sharding.spec for shape, sharding in shardings(mesh, tree).items()} == wanted
