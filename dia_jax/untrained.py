"""A small Dia and a small DAC with random weights, written in the layouts of the hub, to test and to try things out.

It makes noise, not speech. Everything else is real: the files, the limits of 1024 bytes and 3072 positions, 9 channels.
"""

import math
import os

import jax
import numpy as np
from flax import nnx

from dia_jax.checkpoint import Layout, abstract_params, new_directory, write_params
from dia_jax.config import DacConfig, DecoderConfig, DiaConfig, EncoderConfig, Variant

SMALL_DIA = DiaConfig(
    encoder=EncoderConfig(num_layers=2, hidden_size=64, mlp_size=128, num_heads=4, num_kv_heads=4, head_dim=16),
    decoder=DecoderConfig(
        num_layers=2,
        hidden_size=96,
        mlp_size=192,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        cross_num_heads=4,
        cross_num_kv_heads=4,
        cross_head_dim=16,
    ),
)
SMALL_DAC = DacConfig(encoder_size=4, decoder_size=64)


def random_params(
    config: DiaConfig | DacConfig, *, seed: int = 0, dtype: str = "float32"
) -> tuple[nnx.GraphDef, nnx.State]:
    """Random weights of any size, drawn in numpy: a full-size model in seconds.

    Kernels are normal with deviation 1 / sqrt(inputs), so that activations keep their scale; queries with
    1 / sqrt(head_dim) of that, because Dia does not scale its attention scores. Norms and Snake's alphas lie around 1,
    biases around 0.

    Returns:
        graphdef and state, as `checkpoint.load_params` gives them.
    """
    rng = np.random.default_rng(seed)
    graphdef, abstract = abstract_params(config, dtype)

    def draw(path: tuple, value: nnx.Variable) -> np.ndarray:
        noise = rng.standard_normal(value.shape, np.float32)
        if path[-1] == "bias":
            return 0.02 * noise
        if len(value.shape) == 1:
            return 1 + 0.1 * noise
        if path[-1] == "codebook":
            return noise
        if "embeddings" in path or "embedding" in path:  # the decoder's are summed over its channels
            return noise / 3 if "embeddings" in path else noise
        gain = 1.0
        if path[-2] == "q_proj":
            assert isinstance(config, DiaConfig)
            sizes = config.encoder if path[0] == "encoder" else config.decoder
            head_dim = config.decoder.cross_head_dim if "cross_attention" in path else sizes.head_dim
            gain = head_dim**-0.5
        if isinstance(config, DacConfig):  # twelve residual units would make it thousands of times louder
            is_last = path == ("decoder", "conv2", "kernel")
            gain = 0.1 if is_last else 0.3 if str(path[-3]).startswith("res_unit") and path[-2] == "conv2" else 1.0
        inputs = value.shape[-1] if isinstance(config, DiaConfig) else math.prod(value.shape[:-1])
        return gain * noise / math.sqrt(inputs)

    flat = [(path, v.replace(jax.device_put(draw(path, v).astype(v.dtype)))) for path, v in nnx.to_flat_state(abstract)]
    return graphdef, nnx.from_flat_state(flat)


def make_untrained(
    target: str | os.PathLike,
    *,
    layout: Layout = "transformers",
    dac_layout: Layout = "transformers",
    variant: Variant = "0626",
    seed: int = 0,
) -> None:
    """Writes a small random Dia into a new directory, with a small random DAC in its folder `dac/`.

    Args:
        target: a directory that does not exist yet, or is empty.
        layout: of Dia, see `checkpoint.save_params`.
        dac_layout: of DAC.
        variant: "0626" or "v0.1".
        seed: of the random weights.

    Raises:
        CheckpointError: the directory cannot be written, or a layout is unknown or needs torch.
    """
    config = DiaConfig(encoder=SMALL_DIA.encoder, decoder=SMALL_DIA.decoder, variant=variant)
    with new_directory(target) as folder:
        write_params(folder, config, random_params(config, seed=seed)[1], layout=layout)
        (folder / "dac").mkdir()
        write_params(folder / "dac", SMALL_DAC, random_params(SMALL_DAC, seed=seed + 1)[1], layout=dac_layout)
