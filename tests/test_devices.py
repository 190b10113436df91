"""The default dtype by device, and the notice of an accelerator that JAX does not use; the machines are made up."""

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from dia_jax import AcceleratorWarning, Dia, devices, pipeline
from dia_jax.cli import run
from dia_jax.devices import default_dtype, idle_accelerator, warn_of_idle_accelerator

JAX = {"jax": "0.10.2", "jaxlib": "0.10.2"}
GPU = ["dev/nvidia0"]
CHIPS = ["dev/accel0"]


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ({"platform": "cpu"}, "float32"),
        ({"platform": "tpu"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "6.0"}, "float16"),
        ({"platform": "gpu", "compute_capability": "7.5"}, "float16"),
        ({"platform": "gpu", "compute_capability": "8.0"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "12.0"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "gfx90a"}, "bfloat16"),
        ({"platform": "gpu"}, "bfloat16"),
    ],
)
def test_the_default_dtype(device: dict, dtype: str):
    assert default_dtype(SimpleNamespace(**device)) == dtype


def test_dia_is_loaded_in_the_default_dtype_of_its_device(small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "default_dtype", {jax.local_devices()[0]: "float16"}.get)
    dia = Dia.from_pretrained(small, load_codec=False)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(dia.params)} == {"float16", "float32"}


Machine = Callable[..., str | None]


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Makes a machine from its files and packages, and returns the notice that it gets."""
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_NAME", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy>=2.0", 'libtpu==0.0.42.*; extra == "tpu"'])

    def make(files: list[str], packages: dict[str, str], **pci: str) -> str | None:
        root = tmp_path_factory.mktemp("root")
        contents = {f"sys/bus/pci/devices/0000:00:05.0/{name}": f"{value}\n" for name, value in pci.items()}
        for name, content in (dict.fromkeys(files, "") | contents).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        monkeypatch.setattr(devices, "ROOT", root)
        monkeypatch.setattr(devices, "_version", (JAX | packages).get)
        return idle_accelerator()

    warn_of_idle_accelerator.cache_clear()
    yield make
    warn_of_idle_accelerator.cache_clear()
    jax.config.update("jax_platforms", platforms)


def cuda(number: int, plugin: str, pjrt: str | None = None) -> dict[str, str]:
    return {f"jax-cuda{number}-plugin": plugin, f"jax-cuda{number}-pjrt": pjrt or plugin}


@pytest.mark.parametrize(
    ("files", "packages", "parts"),
    [
        (GPU, {}, ["an NVIDIA GPU (", "/dev/nvidia0)", "without CUDA", "pip install 'jax[cuda12]==0.10.2'"]),
        (
            GPU,
            cuda(12, "0.7.2"),
            ["jax-cuda12-plugin is 0.7.2", "jaxlib is 0.10.2", "pip install 'jax[cuda12]==0.10.2'"],
        ),
        (GPU, cuda(13, "0.9.0"), ["jax-cuda13-plugin is 0.9.0", "pip install 'jax[cuda13]==0.10.2'"]),
        (GPU, cuda(12, "0.10.2", "0.7.2"), ["jax-cuda12-pjrt is 0.7.2", "pip install 'jax[cuda12]==0.10.2'"]),
        (GPU, {"jax-cuda12-plugin": "0.10.2"}, ["jax-cuda12-pjrt is not installed", "jax[cuda12]==0.10.2"]),
        (GPU, cuda(12, "0.10.2"), ["driver", "JAX_PLATFORMS=cuda python -c"]),
        (GPU, cuda(12, "0.10.2") | cuda(13, "0.9.0"), ["driver", "JAX_PLATFORMS=cuda python -c"]),
        (["dev/nvidia3"], {}, ["/dev/nvidia3"]),
        (["dev/dxg", "usr/lib/wsl/lib/nvidia-smi"], {}, ["an NVIDIA GPU"]),
        (CHIPS, {}, ["a TPU (", "/dev/accel0)", "libtpu is not installed", "pip install 'jax[tpu]==0.10.2'"]),
        (
            CHIPS,
            {"libtpu": "0.0.21.1"},
            ["libtpu is 0.0.21.1, but jax 0.10.2 takes libtpu 0.0.42", "pip install 'jax[tpu]==0.10.2'"],
        ),
        (CHIPS, {"libtpu": "0.0.4"}, ["libtpu is 0.0.4, but"]),
        (CHIPS, {"libtpu": "0.0.42.1"}, ["another process", "JAX_PLATFORMS=tpu python -c"]),
        (CHIPS, {"libtpu": "0.0.42"}, ["another process"]),
    ],
)
def test_what_is_found_why_and_what_to_do(machine: Machine, files: list[str], packages: dict, parts: list[str]):
    notice = machine(files, packages)
    assert notice is not None
    for part in parts:
        assert part in notice
    assert "\n" not in notice
    assert notice.endswith(".")


def test_chips_behind_vfio_are_told_from_other_devices(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    group = ["dev/vfio/vfio", "dev/vfio/0"]
    assert machine(group, {}) is None
    assert machine(group, {}, vendor="0x1ae0", device="0x0042") is None  # a network card
    assert machine(group, {}, vendor="0x10de", device="0x0063") is None
    assert machine(["dev/vfio/vfio"], {}, vendor="0x1ae0", device="0x0063") is None  # not handed to this container
    assert "/dev/vfio/0" in str(machine(group, {}, vendor="0x1ae0", device="0x0063"))
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    assert "/dev/vfio/0" in str(machine(group, {}))


def test_no_notice_without_reason(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    nothing = ["dev/null", "dev/nvidiactl", "dev/dxg", "dev/accel/accel0", "proc/driver/nvidia/version"]
    assert machine(nothing, {}) is None
    assert machine(GPU, {}) is not None
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert machine(GPU, {}) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert machine(GPU, {}) is not None
    jax.config.update("jax_platforms", "cpu")
    assert machine(GPU, {}) is None
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert machine(GPU, {}) is None


def test_it_comes_once_a_process_and_names_the_callers_line(machine: Machine, small: Path):
    machine(GPU, {})
    with pytest.warns(AcceleratorWarning, match="There is an NVIDIA GPU") as record:
        Dia.from_pretrained(small, load_codec=False)
    assert [warning.filename for warning in record] == [__file__]
    Dia.from_pretrained(small, load_codec=False)


@pytest.mark.filterwarnings("default::dia_jax.AcceleratorWarning")
def test_the_command_line_prints_one_line(machine: Machine, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    notice = machine(GPU, cuda(12, "0.7.2"))
    command = ["generate", "[S1] Hi.", "--model", str(small), "--max-tokens", "2", "--quiet"]
    assert run([*command, "--output", str(tmp_path / "x.wav")]) == 0
    assert capsys.readouterr().err == f"dia-jax: {notice}\n"
    assert run(["info"]) == 0
    assert f"\n{notice}\n" in capsys.readouterr().out
