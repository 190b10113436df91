"""Several devices: the same tokens as on one, an even share of a list, weights in their parts. On eight forced CPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from dia_jax import Dia, MeshError
from dia_jax.config import DiaConfig
from dia_jax.mesh import decode_mesh
from dia_jax.untrained import SMALL_DIA

SCRIPT = """
import collections, dataclasses, json
import jax, numpy as np
from jax.sharding import AxisType, Mesh
from dia_jax import Dia
from dia_jax.checkpoint import save_params
from dia_jax.config import DiaConfig
from dia_jax.untrained import SMALL_DIA, random_params
from dia_jax.worker import Worker

enc, dec = SMALL_DIA.encoder, SMALL_DIA.decoder
config = DiaConfig(
    encoder=dataclasses.replace(enc, num_heads=8, num_kv_heads=8),
    decoder=dataclasses.replace(
        dec, num_heads=16, num_kv_heads=8, cross_num_heads=8, cross_num_kv_heads=8, vocab_size=1032
    ),
)
save_params("wide", config, random_params(config, seed=3)[1])
devices = np.array(jax.devices())
assert len(devices) == 8
texts = [f"[S1] Line {i}, {'very ' * (i % 5)}well. [S2] Yes." for i in range(24)]
options = {"max_tokens": 24, "batch_size": 12, "audio_prompt": np.ones((5, 9), int)}
found = {}
for name, mesh in (
    ("one", Mesh(devices[:1], ("data",))),
    ("data", None),
    ("model", jax.make_mesh((8,), ("model",), axis_types=(AxisType.Explicit,))),
    ("both", jax.make_mesh((2, 4), ("data", "model"))),
):
    dia = Dia.from_pretrained("wide", load_codec=False, mesh=mesh, dtype="float32")
    engine, shares, take = dia.engine, collections.Counter(), dia.engine._take
    def counted(loop, live):
        jobs, capacity = take(loop, live)
        shares[engine.loops.index(loop)] += len(jobs)
        return jobs, capacity
    for loop in engine.loops:
        loop._take = counted
    # All jobs are there before the first turn, so that each loop has a batch of one size, and compiles once.
    wake, Worker.wake = Worker.wake, lambda self: None
    jobs = [dia.submit(text, seed=i, sound=False, **options) for i, text in enumerate(texts)]
    Worker.wake = wake
    for loop in engine.loops:
        loop.wake()
    codes = [job.result() for job in jobs]
    found[name] = {
        "codes": [clip.tolist() for clip in codes],
        "shares": [shares[i] for i in range(len(engine.loops))],
        "bytes": sorted(
            sum(s.data.nbytes for x in jax.tree.leaves(dia.params) for s in x.addressable_shards if s.device == device)
            for device in dia.mesh.devices.flat
        ),
        "whole": sum(x.nbytes for x in jax.tree.leaves(dia.params)),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    # Without XLA's optimizations, each of the eight devices compiles its programs in half the time.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    # Eight devices on two cores beside other tests: one may wait for the others longer than the 40 s that are usual.
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=300"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    folder = tmp_path_factory.mktemp("devices")
    command = [sys.executable, "-c", SCRIPT]
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_tokens_are_those_of_one_device(found: dict):
    assert all(len(clip) == 24 for clip in found["one"]["codes"])
    assert found["data"]["codes"] == found["one"]["codes"]
    assert found["model"]["codes"] == found["one"]["codes"]
    assert found["both"]["codes"] == found["one"]["codes"]


def test_a_list_is_shared_evenly(found: dict):
    assert found["data"]["shares"] == [3] * 8
    assert found["both"]["shares"] == [12, 12]


def test_each_device_holds_its_part(found: dict):
    whole = found["one"]["whole"]
    assert found["data"]["bytes"] == [whole] * 8
    # Norms are small, and the only ones on every device.
    for size in found["model"]["bytes"]:
        assert whole / 8 <= size < whole / 8 * 1.05
    for size in found["both"]["bytes"]:
        assert whole / 4 <= size < whole / 4 * 1.05


def mesh(*axes: str, shape: tuple[int, ...] = (1,)) -> Mesh:
    grid = np.array(jax.devices() * 8)[: int(np.prod(shape))].reshape(shape)
    return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def test_meshes_that_cannot_be_used():
    with pytest.raises(MeshError, match=r'axes data, fsdp; it may have "data" and "model"'):
        decode_mesh(SMALL_DIA, mesh("data", "fsdp", shape=(1, 1)))
    with pytest.raises(MeshError, match=r'"model" is 8, which does not divide .* heads \(4\).*; it may be 1, 2, 4\.$'):
        decode_mesh(DiaConfig(), mesh("model", shape=(8,)))


def test_a_mesh_is_given_in_any_order():
    assert decode_mesh(SMALL_DIA, mesh("model", "data", shape=(1, 1))).axis_names == ("data", "model")
    assert decode_mesh(SMALL_DIA).shape == {"data": len(jax.local_devices()), "model": 1}


def test_params_stay_where_they_are(dia: Dia):
    again = Dia(dia.config, dia.graphdef, dia.params)
    assert again.mesh == dia.mesh
    before, after = jax.tree.leaves(dia.params)[0], jax.tree.leaves(again.params)[0]
    assert before.unsafe_buffer_pointer() == after.unsafe_buffer_pointer()
