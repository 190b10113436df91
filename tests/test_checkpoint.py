"""Reading and writing every layout: exact both ways, and one sentence about all that is wrong with a bad one."""

import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from dia_jax import CheckpointError, ConfigError, Dia, convert, load_params, open_checkpoint, save_params
from dia_jax.checkpoint import writing
from dia_jax.untrained import SMALL_DAC, SMALL_DIA, make_untrained, random_params

from conftest import load_module

DIA_LAYOUTS = ("transformers", "reference", "reference-pth", "orbax")
DAC_LAYOUTS = ("transformers", "descript", "orbax")


def flat(params: nnx.State) -> dict[str, np.ndarray]:
    return {".".join(map(str, path)): np.asarray(value[...]) for path, value in nnx.to_flat_state(params)}


def assert_same(one: nnx.State, other: nnx.State) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        assert array.dtype == other[path].dtype
        assert array.tobytes() == other[path].tobytes(), path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("layouts")
    for i, layout in enumerate(DIA_LAYOUTS):
        make_untrained(root / layout, layout=layout, dac_layout=DAC_LAYOUTS[i % 3])
    return {layout: root / layout for layout in DIA_LAYOUTS}


@pytest.mark.parametrize("layout", DIA_LAYOUTS)
def test_dia_is_read_from_every_layout(folders: dict[str, Path], layout: str):
    config, _, params = load_module(folders[layout])
    assert config == SMALL_DIA
    assert_same(params, random_params(SMALL_DIA)[1])


@pytest.mark.parametrize("layout", DIA_LAYOUTS)
def test_dac_is_read_from_every_layout(folders: dict[str, Path], layout: str):
    config, _, params = load_module(folders[layout] / "dac")
    assert config == SMALL_DAC
    assert_same(params, random_params(SMALL_DAC, seed=1)[1])


@pytest.mark.parametrize("source", DIA_LAYOUTS)
@pytest.mark.parametrize("target", DIA_LAYOUTS)
def test_every_conversion_is_exact(folders: dict[str, Path], tmp_path: Path, source: str, target: str):
    convert(folders[source], tmp_path / "there", layout=target, verify=True)
    convert(tmp_path / "there", tmp_path / "back", layout=source, verify=True)
    before, after = (open_checkpoint(folder) for folder in (folders[source], tmp_path / "back"))
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        assert tensor.read().tobytes() == after.tensors[name].read().tobytes(), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", DIA_LAYOUTS)
def test_sixteen_bit_is_kept(tmp_path: Path, dtype: str, layout: str):
    _, params = random_params(SMALL_DIA, dtype=dtype)
    save_params(tmp_path / "dia", SMALL_DIA, params, layout=layout)
    assert open_checkpoint(tmp_path / "dia").dtype == dtype
    assert_same(load_module(tmp_path / "dia")[2], params)


def test_transformers_loads_what_is_written(folders: dict[str, Path]):
    written = folders["transformers"]
    model, info = transformers.DiaForConditionalGeneration.from_pretrained(written, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in open_checkpoint(written).tensors.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), tensor.read())
    assert model.config.decoder_config.num_channels == 9
    codec, info = transformers.DacModel.from_pretrained(written / "dac", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert codec.config.hop_length == 512


def test_sharded(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "MAX_SHARD_BYTES", 2_000_000)
    convert(folders["orbax"], tmp_path / "ours", layout="transformers", verify=True)
    shards = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    transformers.DiaForConditionalGeneration.from_pretrained(tmp_path / "ours").save_pretrained(
        tmp_path / "theirs", max_shard_size="1MB"
    )
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert_same(load_module(tmp_path / "theirs")[2], load_module(folders["orbax"])[2])


def test_v01_stays_v01(tmp_path: Path):
    make_untrained(tmp_path / "a", layout="reference", variant="v0.1")
    assert "model" in json.loads((tmp_path / "a" / "config.json").read_text())
    for step, layout in (("b", "transformers"), ("c", "orbax"), ("d", "reference-pth")):
        convert(tmp_path / chr(ord(step) - 1), tmp_path / step, layout=layout, verify=True)
        assert open_checkpoint(tmp_path / step).config.variant == "v0.1"
    assert open_checkpoint(tmp_path / "d", variant="0626").config.variant == "0626"


def test_fused_projections_compiled_prefixes_and_rope_buffers(folders: dict[str, Path], tmp_path: Path):
    tensors = {name: t.read() for name, t in open_checkpoint(folders["reference"]).tensors.items()}
    odd = {}
    for name, array in tensors.items():
        if ".self_attention.q_proj." in name:
            base = name.removesuffix(".q_proj.weight")
            parts = [tensors[f"{base}.{p}_proj.weight"] for p in "qkv"]
            odd[f"_orig_mod.{base}.qkv.linear.weight"] = np.concatenate([p.reshape(len(p), -1).T for p in parts])
            odd[f"_orig_mod.{base}.rotary_emb.timescale"] = np.ones(8, np.float32)
        elif ".self_attention.k_proj." not in name and ".self_attention.v_proj." not in name:
            odd[f"_orig_mod.{name}"] = array
    shutil.copy(folders["reference"] / "config.json", tmp_path)
    torch.save({name: torch.tensor(array) for name, array in odd.items()}, tmp_path / "dia-v1.pth")
    assert_same(load_module(tmp_path)[2], load_module(folders["reference"])[2])


@pytest.mark.parametrize("spelling", ["weight_g", "parametrizations"])
def test_weight_norm_is_folded(tmp_path: Path, spelling: str):
    """Against torch's own weight norm, on weights whose g is not the norm of their v."""
    _, params = random_params(SMALL_DAC, seed=2)
    save_params(tmp_path / "dac", SMALL_DAC, params, layout="descript")
    data = torch.load(tmp_path / "dac" / "weights.pth", weights_only=True)
    expected, state = {}, {}
    for name, value in data["state_dict"].items():
        if name.endswith("weight_g"):
            scaled = value * torch.rand_like(value)
            v = data["state_dict"][name[:-1] + "v"]
            expected[name[:-2]] = torch._weight_norm(v, scaled, 0)
            names = ("weight_g", "weight_v")
            if spelling == "parametrizations":
                names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
            state |= {name[:-8] + names[0]: scaled, name[:-8] + names[1]: v}
        elif not name.endswith("weight_v"):
            state[name] = value
    torch.save({"state_dict": state, "metadata": data["metadata"]}, tmp_path / "weights.pth")
    tensors = open_checkpoint(tmp_path / "weights.pth").tensors
    for name, tensor in expected.items():
        np.testing.assert_allclose(tensors[name].read(), tensor.numpy(), rtol=1e-6)


# --- What is wrong with a checkpoint ---------------------------------------------------------------------------------


def test_everything_wrong_is_told_at_once(folders: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "bad"
    shutil.copytree(folders["transformers"], folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.encoder.norm.weight"]
    tensors["model.decoder.surplus"] = np.ones(3, np.float32)
    tensors["logits_dense.weight"] = tensors["logits_dense.weight"][:-1]
    tensors["model.decoder.norm.weight"] = np.array(tensors["model.decoder.norm.weight"])
    tensors["model.decoder.norm.weight"][3] = np.nan
    tensors["model.decoder.layers.0.pre_sa_norm.weight"] = np.full(96, np.inf, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_module(folder)
    message = str(error.value)
    assert "5 things are wrong" in message
    for part in (
        "missing: model.encoder.norm.weight (64,)",
        "unknown: model.decoder.surplus (3,)",
        "misshapen: logits_dense.weight is (9251, 96), not (9252, 96)",
        "not finite: model.decoder.norm.weight",
        "not finite: model.decoder.layers.0.pre_sa_norm.weight",
    ):
        assert part in message


def truncate(path: Path, keep: float) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


BREAKAGES = {
    "truncated safetensors": ("transformers", lambda f: truncate(f / "model.safetensors", 0.6)),
    "safetensors cut in its header": ("transformers", lambda f: os.truncate(f / "model.safetensors", 100)),
    "empty safetensors": ("transformers", lambda f: os.truncate(f / "model.safetensors", 0)),
    "garbage": ("transformers", lambda f: (f / "model.safetensors").write_bytes(b"not a checkpoint at all")),
    "truncated pth": ("reference-pth", lambda f: truncate(f / "dia-v1.pth", 0.6)),
    "bare pickle": ("reference-pth", lambda f: (f / "dia-v1.pth").write_bytes(b"\x80\x02")),
    "pickle of objects": ("reference-pth", lambda f: torch.save({"a": Path()}, f / "dia-v1.pth")),
    "pth of a list": ("reference-pth", lambda f: torch.save([torch.ones(2)], f / "dia-v1.pth")),
    "orbax without metadata": ("orbax", lambda f: (f / "params" / "_CHECKPOINT_METADATA").unlink()),
    "orbax without arrays": ("orbax", lambda f: [p.unlink() for p in (f / "params").rglob("d/*")]),
    "orbax cut short": ("orbax", lambda f: [truncate(p, 0.5) for p in (f / "params").rglob("d/*")]),
    "no config": ("transformers", lambda f: (f / "config.json").unlink()),
    "config of nothing": ("transformers", lambda f: (f / "config.json").write_text("{}")),
    "config cut short": ("transformers", lambda f: truncate(f / "config.json", 0.5)),
    "no weights": ("transformers", lambda f: (f / "model.safetensors").unlink()),
}


# Orbax's event loop is closed before the callbacks of its failed reads have come back.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_checkpoint_is_refused_and_nothing_written(folders: dict[str, Path], tmp_path: Path, name: str):
    layout, damage = BREAKAGES[name]
    shutil.copytree(folders[layout], tmp_path / "bad")
    damage(tmp_path / "bad")
    with pytest.raises((CheckpointError, ConfigError)) as error:
        convert(tmp_path / "bad", tmp_path / "out")
    assert str(tmp_path / "bad") in str(error.value) or "config.json" in str(error.value)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad"]


def test_a_broken_shard_is_named_with_what_it_takes_along(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writing, "MAX_SHARD_BYTES", 2_000_000)
    convert(folders["orbax"], tmp_path / "bad", layout="transformers")
    shards = sorted((tmp_path / "bad").glob("*.safetensors"))
    weight_map = json.loads((tmp_path / "bad" / "model.safetensors.index.json").read_text())["weight_map"]
    lost = [name for name, shard in weight_map.items() if shard in (shards[0].name, shards[1].name)]
    truncate(shards[0], 0.5)
    shards[1].unlink()
    with pytest.raises(CheckpointError) as error:
        load_module(tmp_path / "bad")
    for part in (f"{shards[0]} is truncated", f"{shards[1].name} is missing", *(f"missing: {name}" for name in lost)):
        assert part in str(error.value)


def test_a_pickle_runs_nothing(folders: dict[str, Path], tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    shutil.copy(folders["reference-pth"] / "config.json", tmp_path)
    torch.save({"encoder.norm.weight": Evil()}, tmp_path / "dia.pth")
    with pytest.raises(CheckpointError, match="could run any code"):
        open_checkpoint(tmp_path / "dia.pth")
    assert not (tmp_path / "pwned").exists()


def test_an_index_may_not_point_elsewhere(folders: dict[str, Path], tmp_path: Path):
    shutil.copy(folders["transformers"] / "config.json", tmp_path)
    index = {"weight_map": {"model.encoder.norm.weight": "../../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no file of its own folder"):
        open_checkpoint(tmp_path)


def test_what_is_there_is_not_overwritten(folders: dict[str, Path], tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(folders["orbax"], tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["precious"]


def test_too_large_for_float16_is_told(tmp_path: Path):
    graphdef, params = random_params(SMALL_DIA)
    module = nnx.merge(graphdef, params)
    module.encoder.layers[0].mlp.wo.weight[...] *= 1e6
    save_params(tmp_path / "dia", SMALL_DIA, nnx.state(module), layout="transformers")
    with pytest.raises(CheckpointError, match=r"too large for float16: encoder\.layers\.0\.mlp\.wo\.weight"):
        load_params(open_checkpoint(tmp_path / "dia"), dtype="float16")


def test_mixed_types_are_not_rounded(tmp_path: Path):
    """Most matrices in bfloat16, one in float32: the conversion keeps every value of both."""
    _, params = random_params(SMALL_DIA, dtype="bfloat16")
    save_params(tmp_path / "mixed", SMALL_DIA, params, layout="transformers")
    tensors = load_file(tmp_path / "mixed" / "model.safetensors")
    name = "model.encoder.layers.0.mlp.down_proj.weight"
    tensors[name] = np.random.default_rng(0).standard_normal(tensors[name].shape).astype(np.float32)
    save_file(tensors, tmp_path / "mixed" / "model.safetensors")
    convert(tmp_path / "mixed", tmp_path / "orbax", verify=True)
    convert(tmp_path / "orbax", tmp_path / "back", layout="transformers", verify=True)
    for name, array in load_file(tmp_path / "back" / "model.safetensors").items():
        np.testing.assert_array_equal(array, tensors[name].astype(np.float32))


def test_other_types_are_refused(folders: dict[str, Path], tmp_path: Path):
    shutil.copytree(folders["transformers"], tmp_path / "dia")
    tensors = load_file(tmp_path / "dia" / "model.safetensors")
    tensors["model.encoder.norm.weight"] = tensors["model.encoder.norm.weight"].astype(np.float64)
    save_file(tensors, tmp_path / "dia" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"of no usable type: model.encoder.norm.weight is F64"):
        load_module(tmp_path / "dia")


def test_a_layout_of_the_other_model_is_refused(tmp_path: Path):
    _, params = random_params(SMALL_DAC)
    with pytest.raises(CheckpointError, match="not one of DAC's: orbax, transformers, descript"):
        save_params(tmp_path / "dac", SMALL_DAC, params, layout="reference")
    assert not list(tmp_path.iterdir())


def test_a_single_file_is_loaded_by_the_config_beside_it(folders: dict[str, Path]):
    dia = Dia.from_pretrained(folders["transformers"] / "model.safetensors")
    assert dia.config == SMALL_DIA
    assert dia.codec is not None


def test_bfloat16_values_survive_the_streaming_writer(tmp_path: Path):
    """Read back by the library's own reader, not by ours."""
    _, params = random_params(SMALL_DIA, dtype="bfloat16")
    save_params(tmp_path / "dia", SMALL_DIA, params, layout="transformers")
    tensors = load_file(tmp_path / "dia" / "model.safetensors")
    ours = flat(params)["decoder.layers.0.mlp.wo.weight"]
    theirs = tensors["model.decoder.layers.0.mlp.down_proj.weight"]
    assert theirs.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(theirs, ours)
