"""Files that nobody would write on purpose: each ends in one sentence, at once, and leaves nothing behind."""

import contextlib
import errno
import gc
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
import torch
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file

import dia_jax.checkpoint
from dia_jax import CheckpointError, ConfigError, DiaError, HubError, convert, load_params, open_checkpoint
from dia_jax import hub as hub_module
from dia_jax.checkpoint import writing
from dia_jax.checkpoint.tensors import PICKLE_GLOBALS, StoredTensor
from dia_jax.files import FileError, new_file, new_folder, read_json, read_text_file, write_whole
from dia_jax.untrained import make_untrained

from conftest import load_module

AT_ONCE = 5.0
"""Seconds that a refusal may take. Nothing that is refused here would end within a minute if it were believed."""

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pth") / "dia"
    make_untrained(folder, layout="reference-pth", dac_layout="descript")
    return folder


def refusal(call: Callable[[], Any], kind: type[DiaError] = DiaError) -> str:
    """The message of an error that comes at once and is one sentence."""
    began = time.perf_counter()
    with pytest.raises(kind) as error:
        call()
    assert time.perf_counter() - began < AT_ONCE
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 2000
    return message


def changed(source: Path, target: Path, change: Callable[[dict], Any]) -> Path:
    """A copy of a checkpoint with another config."""
    shutil.copytree(source, target)
    data = json.loads((target / "config.json").read_text())
    change(data)
    (target / "config.json").write_text(json.dumps(data))
    return target


# --- Sizes that a config claims --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        (
            "decoder_config",
            "num_hidden_layers",
            100_000,
            "num_layers is 100000; it must be a whole number from 1 to 1,000",
        ),
        ("decoder_config", "num_hidden_layers", 1_000, "decoder num_layers is 1000, but the weights have 2"),
        ("encoder_config", "num_hidden_layers", 1, "encoder num_layers is 1, but the weights have 2"),
        ("decoder_config", "max_position_embeddings", 10**10, "from 1 to 65,536"),
        ("encoder_config", "intermediate_size", 10**12, "from 1 to 262,144"),
        ("decoder_config", "num_attention_heads", 10**9, "from 1 to 1,024"),
        ("decoder_config", "vocab_size", 10**9, "from 1 to 65,536"),
        ("decoder_config", "num_channels", 10**9, "from 1 to 256"),
        ("encoder_config", "rope_theta", 10**400, "too large"),
        ("encoder_config", "norm_eps", 10**400, "at most 1"),
        ("encoder_config", "rope_theta", float("nan"), "rope_theta is nan"),
    ],
)
def test_sizes_of_dia_are_not_believed(small: Path, tmp_path: Path, part: str, key: str, value: float, words: str):
    folder = changed(small, tmp_path / "dia", lambda data: data[part].update({key: value}))
    assert words in refusal(lambda: load_module(folder))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("n_codebooks", 10**9, "num_codebooks is 1000000000; it must be a whole number from 1 to 256"),
        ("n_codebooks", 256, "num_codebooks is 256, but the weights have 9"),
        ("downsampling_ratios", [2] * 200, "there are 200 strides; there must be from 1 to 16"),
        ("downsampling_ratios", [2] * 16, "latent_size"),
        ("downsampling_ratios", [2, 4, 8, 10**9], "hop"),
        ("downsampling_ratios", [10**4000] * 2, "too large to be shown"),
        ("codebook_dim", 10**400, "codebook_dim"),
        ("encoder_hidden_size", [1], "encoder_size is [1]"),
    ],
)
def test_sizes_of_dac_are_not_believed(small: Path, tmp_path: Path, key: str, value: Any, words: str):
    folder = changed(small / "dac", tmp_path / "dac", lambda data: data.update({key: value, "upsampling_ratios": None}))
    assert words in refusal(lambda: load_module(folder))


def test_the_largest_sizes_are_compared_with_the_weights_in_no_time(small: Path, tmp_path: Path):
    sizes = {"hidden_size": 65_536, "intermediate_size": 262_144, "head_dim": 4_096, "vocab_size": 65_536}
    folder = changed(
        small,
        tmp_path / "dia",
        lambda data: (
            [data["decoder_config"].update(sizes), data["encoder_config"].update(hidden_size=65_536)]
            and data["decoder_config"].update(cross_hidden_size=65_536)
        ),
    )
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match="misshapen"):
        load_module(folder)
    assert time.perf_counter() - began < AT_ONCE


# --- Pickles ---------------------------------------------------------------------------------------------------------


def write_pth(path: Path, pickled: bytes, *, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little", zipfile.ZIP_STORED)
        archive.writestr("archive/version", "3\n", zipfile.ZIP_STORED)
        archive.writestr("archive/data/0", bytes(16), zipfile.ZIP_STORED)


def reduced(function: str, arguments: bytes) -> bytes:
    """The pickle of {"x": function(*arguments)}."""
    return b"\x80\x02}X\x01\x00\x00\x00xc" + function.encode() + b"\n" + arguments + b"Rs."


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
PICKLES = {
    "an OrderedDict of 5": reduced("collections\nOrderedDict", b"K\x05\x85"),
    "a Size of 5": reduced("torch\nSize", b"K\x05\x85"),
    "a tensor of nothing": reduced("torch._utils\n_rebuild_tensor_v2", b")"),
    "a tensor of integers": reduced("torch._utils\n_rebuild_tensor_v2", b"(K\x01K\x02K\x03K\x04K\x05K\x06t"),
    "an integer as persistent id": b"\x80\x02}X\x01\x00\x00\x00xK\x05Qs.",
    "6 GB of bytearray": reduced("__builtin__\nbytearray", b"\x8a\x05\x00\xbc\xa0e\x01\x85"),
    "40 GB of storage": reduced("torch\nFloatStorage", b"\x8a\x05\x00\xe4\x0bT\x02\x85"),
    "a nested tensor": reduced("torch._utils\n_rebuild_nested_tensor", b")"),
    "a function of the system": reduced("os\nsystem", b"X\x04\x00\x00\x00true\x85"),
    "an opcode of protocol 4": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}.",
    "no pickle": b"hello",
    "a pickle cut short": b"\x80\x02}X\xff\x00",
    "a tensor larger than its storage": reduced(
        "torch._utils\n_rebuild_tensor_v2", STORAGE + b"K\x00J\x00\x00\x00\x10\x85K\x01\x85\x89}" + b"t"
    ).replace(b"_v2\n(X", b"_v2\n((X"),
    "a tensor expanded from one value": reduced(
        "torch._utils\n_rebuild_tensor_v2", b"(" + STORAGE + b"K\x00J\x00\x00\x00\x10\x85K\x00\x85\x89}t"
    ),
}


@pytest.mark.parametrize("name", PICKLES)
def test_no_pickle_ends_in_a_traceback_or_in_gigabytes(pth: Path, tmp_path: Path, name: str):
    shutil.copy(pth / "config.json", tmp_path)
    write_pth(tmp_path / "dia.pth", PICKLES[name])
    message = refusal(lambda: load_module(tmp_path / "dia.pth"), CheckpointError)
    assert str(tmp_path) in message


def test_compressed_members_are_not_inflated(pth: Path, tmp_path: Path):
    shutil.copy(pth / "config.json", tmp_path)
    write_pth(tmp_path / "dia.pth", b"\x80\x02}" + b"0" * 10**7 + b".", compression=zipfile.ZIP_DEFLATED)
    assert "compressed members" in refusal(lambda: load_module(tmp_path / "dia.pth"), CheckpointError)


def test_a_pickle_of_many_megabytes_is_not_read(pth: Path, tmp_path: Path):
    shutil.copy(pth / "config.json", tmp_path)
    write_pth(tmp_path / "dia.pth", b"\x80\x02}" + b"0" * 2**25 + b".")
    assert "a pickle of 33,554,436 bytes" in refusal(lambda: load_module(tmp_path / "dia.pth"), CheckpointError)


def test_flipped_bits_of_a_pickle_end_in_a_sentence(pth: Path, tmp_path: Path):
    shutil.copy(pth / "config.json", tmp_path)
    with zipfile.ZipFile(pth / "dia-v1.pth") as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(members[name])
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        with zipfile.ZipFile(tmp_path / "dia.pth", "w") as archive:
            for other, data in members.items():
                archive.writestr(other, bytes(damaged) if other == name else data)
        with contextlib.suppress(CheckpointError):  # and no other error
            open_checkpoint(tmp_path / "dia.pth")


def test_what_torch_saves_is_admitted(tmp_path: Path):
    """Every kind of value that the scan lets through comes from torch itself."""
    weights = torch.nn.ParameterDict({"p": torch.nn.Parameter(torch.ones(2))}).state_dict(keep_vars=True)
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int8, torch.int16)
    dtypes += (torch.int32, torch.int64, torch.bool)
    values = {
        "weights": weights,
        "size": torch.Size([1, 2]),
        "plain": [1, 2.5, None, True, "x", (1, 2, 3, 4), -(2**40)],
    }
    values |= {str(dtype): torch.ones(2, dtype=dtype) for dtype in dtypes}
    values["dtype"] = torch.float32
    torch.save({"encoder.layers.0.x": torch.ones(2)} | values, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"There is no config\.json"):
        open_checkpoint(tmp_path / "x.pth")
    assert len(PICKLE_GLOBALS) == len(set(PICKLE_GLOBALS))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"encoder_rates": torch.tensor([2, 4, 8, 8])},
        {"encoder_rates": [torch.tensor(2)] * 4},
        {"decoder_rates": torch.tensor([8, 8, 4, 2])},
        {"decoder_rates": [torch.tensor(8), 8, 4, 2]},
        {"encoder_dim": torch.tensor([4, 4])},
        {"latent_dim": torch.tensor([64, 64])},
        {"n_codebooks": torch.tensor(9)},
    ],
)
def test_tensors_in_place_of_sizes_are_refused(pth: Path, tmp_path: Path, kwargs: dict):
    data = torch.load(pth / "dac" / "weights.pth", weights_only=True)
    data["metadata"]["kwargs"] |= kwargs
    torch.save(data, tmp_path / "weights.pth")
    refusal(lambda: open_checkpoint(tmp_path / "weights.pth"), ConfigError)


# --- Text that is nested too deeply, or no file ----------------------------------------------------------------------


def index_of(folder: Path, text: str) -> Path:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def test_deeply_nested_json_is_refused(small: Path, tmp_path: Path):
    for place in ("config", "index", "header"):
        shutil.copytree(small, tmp_path / place)
    (tmp_path / "config" / "config.json").write_text(DEEP)
    index_of(tmp_path / "index", DEEP)
    header = b'{"__metadata__":{"x":"y"},"a":' + DEEP.encode() + b"}"
    (tmp_path / "header" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "nested too deeply" in refusal(lambda: load_module(tmp_path / "config"), ConfigError)
    assert "nested too deeply" in refusal(lambda: load_module(tmp_path / "index"), CheckpointError)
    refusal(lambda: load_module(tmp_path / "header"), CheckpointError)
    with pytest.raises(ConfigError, match="nested too deeply"):
        read_json(tmp_path / "config" / "config.json")


@pytest.mark.parametrize("special", ["fifo", "device"])
def test_pipes_and_devices_are_not_read(small: Path, tmp_path: Path, special: str):
    def replace(path: Path) -> None:
        path.unlink(missing_ok=True)
        os.mkfifo(path) if special == "fifo" else path.symlink_to("/dev/zero")

    for place in ("config", "index", "weights"):
        shutil.copytree(small, tmp_path / place)
    convert(small, tmp_path / "orbax")
    index_of(tmp_path / "index", "{}")
    (tmp_path / "adapter").mkdir()
    replace(tmp_path / "config" / "config.json")
    replace(tmp_path / "index" / "model.safetensors.index.json")
    replace(tmp_path / "weights" / "model.safetensors")
    replace(tmp_path / "orbax" / "params" / "_CHECKPOINT_METADATA")
    replace(tmp_path / "adapter" / "adapter.json")
    for place in ("config", "index", "weights", "orbax"):
        assert "not a regular file" in refusal(lambda place=place: load_module(tmp_path / place))
    message = refusal(lambda: load_params(open_checkpoint(small), adapter=tmp_path / "adapter"), CheckpointError)
    assert "not a regular file" in message


def test_text_is_read_within_its_limit(tmp_path: Path):
    (tmp_path / "x").write_text("äbc")
    assert read_text_file(tmp_path / "x", limit=4) == "äbc"
    assert "larger than 3 bytes" in refusal(lambda: read_text_file(tmp_path / "x", limit=3), FileError)
    assert "No such file" in refusal(lambda: read_text_file(tmp_path / "y", limit=3), FileError)
    assert "not a regular file" in refusal(lambda: read_text_file(tmp_path, limit=3), FileError)
    (tmp_path / "x").write_bytes(b"ab\xff")
    assert "byte 0xff at 2" in refusal(lambda: read_text_file(tmp_path / "x", limit=3), FileError)


def test_names_with_newlines_stay_in_one_line(small: Path, tmp_path: Path):
    shutil.copytree(small, tmp_path / "dia")
    tensors = load_file(tmp_path / "dia" / "model.safetensors")
    save_file(tensors | {"model.a\nb": np.ones(2, np.float32)}, tmp_path / "dia" / "model.safetensors")
    assert r"unknown: 'model.a\nb' (2,)" in refusal(lambda: load_module(tmp_path / "dia"), CheckpointError)


# --- Adapters --------------------------------------------------------------------------------------------------------

KERNEL = "encoder.layers.0.self_attention.q_proj"


def write_adapter(folder: Path, settings: Any, *, rank: int = 4, value: float = 0.1) -> Path:
    folder.mkdir()
    (folder / "adapter.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    arrays = {f"{KERNEL}.a": (rank, 64), f"{KERNEL}.b": (64, rank)}
    save_file({k: np.full(v, value, np.float32) for k, v in arrays.items()}, folder / "adapter.safetensors")
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 4, "alpha": float("nan")}, "its alpha is nan; it must be a number above 0, at most 1,000,000"),
        ({"rank": 4, "alpha": 1e39}, "its alpha is 1e+39"),
        ({"rank": 4, "alpha": float("inf")}, "its alpha is inf"),
        ({"rank": 4, "alpha": 10**400}, "its alpha is 1000"),
        ({"rank": 4, "alpha": "8"}, "its alpha is '8'"),
        ({"rank": 5, "alpha": 8}, "but the rank is 5"),
        ({"rank": -4, "alpha": 8}, "its rank is -4; it must be a whole number from 1 up"),
        ({"rank": 0, "alpha": 8}, "its rank is 0"),
        ({"rank": float("inf"), "alpha": 8}, "its rank is inf"),
        ({"rank": 4.0, "alpha": 8}, "its rank is 4.0"),
        ({"rank": 4}, "its alpha is None"),
        ([], "its rank is None"),
        (DEEP, "nested too deeply"),
    ],
)
def test_an_adapter_of_wrong_gain_is_refused(small: Path, tmp_path: Path, settings: Any, words: str):
    folder = write_adapter(tmp_path / "adapter", settings)
    assert words in refusal(lambda: load_params(open_checkpoint(small), adapter=folder), CheckpointError)


def test_merged_weights_must_be_finite(small: Path, tmp_path: Path):
    folder = write_adapter(tmp_path / "adapter", {"rank": 4, "alpha": 8.0}, value=1e30)
    message = refusal(lambda: load_params(open_checkpoint(small), adapter=folder), CheckpointError)
    assert f"not finite after the adapter is merged: {KERNEL}.weight" in message


def test_an_adapter_has_the_gain_that_it_says(small: Path, tmp_path: Path):
    folder = write_adapter(tmp_path / "adapter", {"rank": 4, "alpha": 8.0})
    plain, merged = (load_params(open_checkpoint(small), adapter=a)[1] for a in (None, folder))
    kernels = [state.encoder.layers[0].self_attention.q_proj.weight[...] for state in (plain, merged)]
    np.testing.assert_allclose(kernels[1] - kernels[0], 8 / 4 * 4 * 0.1 * 0.1, atol=1e-6)


# --- Targets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight may be read."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(dia_jax.checkpoint, "_read_params", fail)


@pytest.mark.usefixtures("unread")
def test_targets_that_cannot_take_the_name_are_refused_before_any_work(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, named in (("link", "empty"), ("dangling", "nowhere")):
        message = refusal(lambda name=name: convert(small, tmp_path / name), CheckpointError)
        assert f"is a symbolic link; name the directory itself: {tmp_path / named}" in message

    def busy(*args: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "rename", busy)
    message = refusal(lambda: convert(small, tmp_path / "empty"), CheckpointError)
    assert "cannot be replaced (Device or resource busy); a mount point cannot" in message
    assert sorted(os.listdir(tmp_path)) == ["dangling", "empty", "link"]


@pytest.mark.usefixtures("unread")
def test_orbax_refuses_names_that_are_not_utf8(small: Path, tmp_path: Path):
    message = refusal(lambda: convert(small, tmp_path / os.fsdecode(b"\xff")), CheckpointError)
    assert "only paths that are UTF-8" in message
    assert not os.listdir(tmp_path)


def full_disk(folder: str, *args: Any) -> None:
    """As Orbax behaves on one: it leaves what it has written so far."""
    Path(f"{folder}.partial_save", "state").mkdir(parents=True)
    raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device\n[source locations=...]")


def full_disk_of_torch(*args: Any) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 399936 vs 399888")


@pytest.mark.parametrize("layout", ["orbax", "reference-pth", "transformers"])
def test_a_full_disk_is_one_sentence_and_nothing_stays(
    small: Path, tmp_path: Path, layout: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ocp.partial, "save", full_disk)
    monkeypatch.setattr(torch, "save", full_disk_of_torch)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    if layout == "transformers":
        monkeypatch.setattr(writing, "open", FullFile, raising=False)
    message = refusal(lambda: convert(small, tmp_path / "out", layout=layout), CheckpointError)
    assert message == f"Cannot write {tmp_path / 'out'}: No space left on device."
    assert not os.listdir(tmp_path)


class FullFile(io.BytesIO):
    def __init__(self, *args: Any):
        super().__init__()

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- What killed processes leave -------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from dia_jax.files import new_file, new_folder
with new_folder(Path(sys.argv[1])) as folder, new_file(sys.argv[2]) as file:
    (folder / "weights").write_text("x")
    file.write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_later_run_removes_what_a_killed_one_left(small: Path, tmp_path: Path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "out", tmp_path / "loss.png"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    with new_folder(tmp_path / "out.x") as held, new_file(tmp_path / "loss.x.png") as open_file:
        others = {held.name, open_file.name, ".out.notours", ".loss.0123.png"}
        (tmp_path / ".out.notours").mkdir()
        (tmp_path / ".loss.0123.png").touch()
        convert(small, tmp_path / "out")
        write_whole(tmp_path / "loss.png", "y")
        assert set(os.listdir(tmp_path)) == {"out", "loss.png"} | others


def test_a_later_run_leaves_alone_what_a_living_one_writes(tmp_path: Path):
    with new_folder(tmp_path / "out") as one, new_file(tmp_path / "x.png") as first:
        with new_folder(tmp_path / "out") as other, new_file(tmp_path / "x.png") as second:
            assert one.exists()
            assert other != one
            assert first.exists()
            assert second != first
        assert one.exists()
        assert first.exists()
    assert os.listdir(tmp_path) == ["x.png"]


def test_new_files_have_the_rights_of_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = os.umask(0o027)
    try:
        # The umask belongs to the whole process: another thread's file would be made with what is set in between.
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
        write_whole(tmp_path / "x", "y")
        with writing.new_directory(tmp_path / "z"):
            pass
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "z").stat().st_mode & 0o777 == 0o750


def test_a_file_may_have_the_longest_name_and_be_a_link(tmp_path: Path):
    longest = tmp_path / ("é" * 125 + ".json")
    write_whole(longest, "x")
    assert longest.read_text() == "x"
    (tmp_path / "link.json").symlink_to(longest)
    write_whole(tmp_path / "link.json", "y")
    assert (tmp_path / "link.json").is_symlink()
    assert longest.read_text() == "y"


# --- Conversion in little memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["transformers", "reference", "orbax"])
def test_conversion_holds_one_tensor_and_no_device(
    small: Path, tmp_path: Path, layout: Any, monkeypatch: pytest.MonkeyPatch
):
    """When a tensor has been read, nothing holds the memory of those before it."""
    read_params, memory = dia_jax.checkpoint._read_params, []

    def watched(*args: Any, **kwargs: Any) -> Iterator[tuple[str, np.ndarray]]:
        for path, array in read_params(*args, **kwargs):
            gc.collect()  # Orbax leaves cycles
            assert [name for name, held in memory if held() is not None] == []
            owner = array
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            memory.append((path, weakref.ref(owner)))
            del owner
            yield path, array
            del array

    gc.freeze()  # what was there before need not be looked through at every tensor
    monkeypatch.setattr(dia_jax.checkpoint, "_read_params", watched)
    monkeypatch.setattr(jax, "device_put", lambda array: pytest.fail("a weight went to the device"))
    monkeypatch.setattr(writing, "ORBAX_GROUP_BYTES", 1)
    convert(small, tmp_path / "there", layout=layout)
    gc.unfreeze()
    assert len(memory) > 20
    monkeypatch.undo()
    convert(small, tmp_path / "whole", layout=layout, verify=True)
    one, other = (open_checkpoint(tmp_path / name).tensors for name in ("there", "whole"))
    assert all(one[name].read().tobytes() == other[name].read().tobytes() for name in one.keys() | other.keys())


def test_a_fused_projection_is_read_once(small: Path):
    reads = []

    def read() -> np.ndarray:
        reads.append(1)
        return np.arange(192 * 64, dtype=np.float32).reshape(192, 64)

    config = open_checkpoint(small).config
    name = "encoder.layers.0.self_attention.qkv.linear.weight"
    split = dia_jax.checkpoint.split_fused_qkv({name: StoredTensor((192, 64), "float32", read)}, config)
    for _ in range(2):
        parts = [split[f"encoder.layers.0.self_attention.{part}_proj.weight"].read() for part in "kqv"]
    assert len(reads) == 2
    np.testing.assert_array_equal(parts[1].reshape(64, 64).T, read()[:64])
    np.testing.assert_array_equal(parts[0].reshape(64, 64).T, read()[64:128])


# --- The hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_not_a_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def fetch(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(hub_module, "_choose", lambda *args, **kwargs: ["config.json"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    message = refusal(lambda: hub_module.resolve("owner/name", cache_dir=tmp_path), HubError)
    assert f"cannot be fetched into the cache {tmp_path}: {os.strerror(code)}" in message


def test_a_hub_out_of_reach_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def choose(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("nobody\nanswers")

    monkeypatch.setattr(hub_module, "_choose", choose)
    message = refusal(lambda: hub_module.resolve("owner/name", cache_dir=tmp_path), HubError)
    assert "the hub cannot be reached (nobody answers)" in message


def test_a_refused_connection_is_a_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between huggingface_hub's own tries
    with socket.socket() as taken:
        taken.bind(("localhost", 0))  # nobody listens there
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://localhost:{taken.getsockname()[1]}")
        message = refusal(lambda: hub_module.resolve("owner/name", cache_dir=tmp_path), HubError)
    assert message.startswith("owner/name is not in the cache, and the hub cannot be reached (")
