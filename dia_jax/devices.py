"""Devices: the dtype that suits each, and a notice where JAX leaves an accelerator idle.

Knows JAX's devices, the system's device files and which packages are installed in which version. Knows no model.
"""

import functools
import importlib.metadata
import os
import re
import warnings
from pathlib import Path

import jax

ROOT = Path("/")
"""Of the device files."""

TPU_PCI_IDS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}
"""Of the chips v2 to v7, among the devices of Google's vendor id. Its virtual network cards have that one too."""


class AcceleratorWarning(UserWarning):
    """A GPU or TPU is there, but JAX computes on the CPU."""


def default_dtype(device: jax.Device) -> str:
    """The dtype in which a device reads Dia fastest.

    Returns:
        "float32" for a CPU, "float16" for an NVIDIA GPU before Ampere, "bfloat16" for everything else.
    """
    if device.platform == "cpu":
        return "float32"
    # XLA would convert bfloat16 kernels to float32 at every step on GPUs that cannot compute in it: five times the
    # bytes. AMD's "capability" is a name such as gfx90a, and all of its GPUs that JAX runs on have bfloat16.
    capability = re.match(r"(\d+)\.\d+", getattr(device, "compute_capability", ""))
    return "float16" if capability and int(capability[1]) < 8 else "bfloat16"


@functools.cache
def warn_of_idle_accelerator() -> None:
    """Warns once a process, as of the caller's caller, where `idle_accelerator` finds one.

    Warns:
        AcceleratorWarning
    """
    if message := idle_accelerator():
        warnings.warn(message, AcceleratorWarning, stacklevel=3)


def idle_accelerator() -> str | None:
    """What to do about a GPU or TPU that JAX does not use; None if there is none, or the CPU was asked for.

    JAX falls back to the CPU where it cannot load what drives an accelerator. That happens most often when pip brings a
    newer jaxlib into an environment and leaves the rest as it was.
    """
    is_chosen = jax.config.jax_platforms  # pyrefly: ignore[missing-attribute]
    if is_chosen or jax.default_backend() != "cpu":
        return None
    if found := _find_gpu():
        what, (reason, remedy) = f"an NVIDIA GPU ({found})", _why_no_gpu()
    elif found := _find_tpu():
        what, (reason, remedy) = f"a TPU ({found})", _why_no_tpu()
    else:
        return None
    return (
        f"There is {what}, but JAX computes on the CPU, most likely because {reason}; {remedy}. "
        "If the CPU is meant, set JAX_PLATFORMS=cpu."
    )


def _first(pattern: str) -> Path | None:
    return min(ROOT.glob(pattern), default=None)


def _find_gpu() -> Path | None:
    # The driver's files in /proc, and nvidia-smi, can also be seen in containers and on machines without a GPU.
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    return _first("dev/nvidia[0-9]*") or (_first("dev/dxg") and _first("usr/lib/wsl/lib/nvidia-smi"))


def _find_tpu() -> Path | None:
    if chip := _first("dev/accel[0-9]*"):
        return chip
    # Newer chips come through vfio, like anything that is handed to a virtual machine.
    is_tpu = "TPU_NAME" in os.environ or "TPU_ACCELERATOR_TYPE" in os.environ
    for vendor in ROOT.glob("sys/bus/pci/devices/*/vendor"):
        is_tpu |= _word(vendor) == "0x1ae0" and _word(vendor.with_name("device")) in TPU_PCI_IDS
    return _first("dev/vfio/[0-9]*") if is_tpu else None


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _why_no_gpu() -> tuple[str, str]:
    """Reason and remedy."""
    jaxlib, missing = _version("jaxlib"), []
    for cuda in ("cuda13", "cuda12"):
        packages = {name: _version(name) for name in (f"jax-{cuda}-plugin", f"jax-{cuda}-pjrt")}
        versions = set(packages.values())
        if versions == {jaxlib}:
            reason = f"its driver or CUDA's libraries do not load ({' and '.join(packages)} are {jaxlib}, as jaxlib)"
            return reason, "JAX_PLATFORMS=cuda python -c 'import jax; jax.devices()' tells more"
        if versions != {None}:
            listed = " and ".join(f"{name} is {version or 'not installed'}" for name, version in packages.items())
            missing.append((cuda, f"{listed}, but jaxlib is {jaxlib} and takes only its own version"))
    # CUDA 12 runs with the drivers of 13 and with older ones, on the GPUs of 13 and on older ones.
    cuda, reason = missing[0] if missing else ("cuda12", "jax is installed without CUDA")
    return reason, _install(cuda)


def _why_no_tpu() -> tuple[str, str]:
    """Reason and remedy."""
    libtpu = _version("libtpu")
    if libtpu is None:
        return "libtpu is not installed", _install("tpu")
    wanted = [line for line in importlib.metadata.requires("jax") or () if line.startswith("libtpu")]
    exact = re.match(r"libtpu\s*==\s*([\d.]+?)(\.\*)?\s*;", wanted[0]) if wanted else None
    if exact and f"{libtpu}.".startswith(f"{exact[1]}."):
        reason = f"libtpu {libtpu} cannot open it, for example while another process has it"
        return reason, "JAX_PLATFORMS=tpu python -c 'import jax; jax.devices()' tells more"
    asked = f"libtpu {exact[1]}" if exact else "another one"
    return f"libtpu is {libtpu}, but jax {_version('jax')} takes {asked}", _install("tpu")


def _install(extra: str) -> str:
    return f"run pip install 'jax[{extra}]=={_version('jax')}' and start Python again"
