"""What the tests share: reference models with random weights, made and written by `transformers` itself."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.models.dia.processing_dia import DiaProcessor

from dia_jax import Dia, loop
from dia_jax.checkpoint import load_params, open_checkpoint
from dia_jax.decode import decode_chunk
from dia_jax.slots import resize
from dia_jax.untrained import make_untrained

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
# Threads of several processes that wait for each other cost more than they gain.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def reference_config(**decoder: int) -> transformers.DiaConfig:
    """A tiny Dia for `transformers`; the decoder's sizes can be overridden."""
    encoder = {
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
    }
    sizes = {
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "cross_num_attention_heads": 4,
        "cross_num_key_value_heads": 4,
        "cross_head_dim": 16,
        "cross_hidden_size": 48,
    }
    return transformers.DiaConfig(encoder_config=encoder, decoder_config=sizes | decoder)


def reference_model(config: transformers.DiaConfig, *, seed: int) -> transformers.DiaForConditionalGeneration:
    """Random weights at which arg-max margins mean something: logits of deviation 1 that depend on what went before."""
    torch.manual_seed(seed)
    model = transformers.DiaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.1)
            elif "embed" in name:
                parameter.normal_(0.0, 1.0)
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    return model


def reference_generate(
    model: transformers.DiaForConditionalGeneration,
    text: np.ndarray,
    *,
    frames: int,
    prompt: np.ndarray | None = None,
    **settings: float,
) -> np.ndarray:
    """Greedy codes [n, 9] of one clip, the delay put on and taken off by the functions of `transformers`' processor."""
    delays, channels = model.config.delay_pattern, model.config.decoder_config.num_channels
    bos, pad = model.config.decoder_config.bos_token_id, model.config.decoder_config.pad_token_id
    prompt = np.zeros((0, channels), np.int64) if prompt is None else prompt
    rows = 1 + len(prompt) + max(delays)
    grid = torch.full((1, rows, channels), pad, dtype=torch.int)
    grid[:, 0] = bos
    grid[:, 1 : 1 + len(prompt)] = torch.tensor(prompt)
    index = DiaProcessor.build_indices(1, rows, channels, delays, revert=False)
    grid = DiaProcessor.apply_audio_delay(grid, pad_token_id=pad, bos_token_id=bos, precomputed_idx=index)
    out = model.generate(
        input_ids=torch.tensor(text[None].astype(np.int64)),
        attention_mask=torch.ones((1, len(text)), dtype=torch.long),
        decoder_input_ids=grid,
        decoder_attention_mask=torch.ones((1, rows), dtype=torch.long),
        max_new_tokens=frames + max(delays) + 1,
        do_sample=False,
        **settings,
    )
    index = DiaProcessor.build_indices(1, out.shape[1], channels, delays, revert=True)
    codes = DiaProcessor.apply_audio_delay(out, pad_token_id=-1, bos_token_id=-1, precomputed_idx=index)
    first_eos = (out[0, :, 0] == model.config.decoder_config.eos_token_id).nonzero()[0].item()
    return codes[0, 1 + len(prompt) : first_eos].numpy()


def load_reference(model: transformers.PreTrainedModel, folder: Path, *, dtype: str = "float32") -> Dia:
    """Writes the reference model as `transformers` does and loads it as users do, without a codec."""
    model.save_pretrained(folder)
    return Dia.from_pretrained(folder, load_codec=False, dtype=dtype)


def load_module(folder: Path) -> tuple:
    """Any checkpoint -> (config, graphdef, params)."""
    checkpoint = open_checkpoint(folder)
    return checkpoint.config, *load_params(checkpoint)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint that `dia-jax make-untrained` writes."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    make_untrained(folder)
    return folder


@pytest.fixture(scope="session")
def dia(small: Path) -> Dia:
    return Dia.from_pretrained(small)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of each call of the loop that is dispatched."""
    steps: list[int] = []

    def counted(*args):
        steps.append(int(args[-1]))
        return decode_chunk(*args)

    monkeypatch.setattr(loop, "decode_chunk", counted)
    return steps


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of the caches after each change of it."""
    lengths: list[int] = []

    def noted(state, slots=None, **sizes):
        lengths.extend(size for name, size in sizes.items() if name == "cache")
        return resize(state, slots, **sizes)

    monkeypatch.setattr(loop, "resize", noted)
    return lengths


def drained(dia: Dia, seconds: float = 60.0) -> bool:
    """Waits until nothing is left to do; False if that takes too long."""
    end = time.monotonic() + seconds
    while not dia.engine.is_idle:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
