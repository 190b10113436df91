"""What the benchmarks share: the machine in words, reference models with random weights, and how results are kept.

Importing it keeps JAX from reserving the whole GPU, because torch runs beside it in the same process, and torch from
taking hold of a TPU.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("USE_TORCH_XLA", "0")
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCRIPT = "[S1] Dia is an open weights text to dialogue model. [S2] You control scripts and voices. (laughs) [S1]"
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def machine() -> dict[str, Any]:
    """Hardware and versions, for the record."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "device": jax.devices()[0].device_kind,
        "torch_device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "flax", "numpy", "torch", "transformers")},
        "date": time.strftime("%Y-%m-%d"),
    }


def reference_dia(config: transformers.DiaConfig, *, seed: int = 0) -> transformers.DiaForConditionalGeneration:
    """A Dia of `transformers` with random weights, in float32, on `DEVICE`.

    Deviation 1 / sqrt(inputs), and for queries 1 / sqrt(head_dim) of that. Dia does not scale its attention scores; a
    trained model has learnt to. Without that, scores of deviation sqrt(head_dim) make each layer an arg-max that
    multiplies rounding errors about fivefold, and behind 30 layers float32 says nothing about float64 any more.
    """
    torch.manual_seed(seed)
    with torch.device(DEVICE):
        model = transformers.DiaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.1)
            else:
                deviation = 1 / 3 if "embeddings" in name else 1.0 if "embed" in name else parameter.shape[1] ** -0.5
                if "q_proj" in name:
                    sizes = config.encoder_config if "encoder" in name else config.decoder_config
                    deviation *= (sizes.cross_head_dim if "cross" in name else sizes.head_dim) ** -0.5
                parameter.normal_(0.0, deviation)
    return model


def reference_dac(config: transformers.DacConfig, *, seed: int = 0) -> transformers.DacModel:
    """A DAC of `transformers` with random weights whose sound neither dies away nor clips."""
    torch.manual_seed(seed)
    model = transformers.DacModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.02)
            else:
                quiet = (
                    0.3 if "res_unit" in name and "conv2" in name else 0.1 if name == "decoder.conv2.weight" else 1.0
                )
                parameter.normal_(0, quiet * np.prod(parameter.shape[1:]) ** -0.5)
        for quantizer in model.quantizer.quantizers:
            quantizer.codebook.weight.normal_(0, 1)
    return model.to(DEVICE)


def bandwidth() -> float:
    """Bytes a second that this device reads: the best of ten passes over 1 GB, of a maximum or a product."""
    data = jnp.ones((1 << 13, 1 << 15), jnp.float32)
    passes = (
        (jax.jit(lambda x: x.reshape(64, -1).max(axis=1)), (data,)),
        (jax.jit(lambda x, y: y @ x), (data, jnp.ones((1, 1 << 13)))),
    )
    times = []
    for run, arguments in passes:
        run(*arguments).block_until_ready()
        for _ in range(10):
            began = time.perf_counter()
            run(*arguments).block_until_ready()
            times.append(time.perf_counter() - began)
    return data.nbytes / min(times)


RESULTS = Path(__file__).parent / "results"


def write_results(folder: Path, name: str, results: dict[str, Any]) -> Path:
    """Writes <folder>/<name>.json and gives its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    return path


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    cells = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)
