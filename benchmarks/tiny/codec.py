"""A small DAC that is computed and not trained: an MDCT, principal components and k-means, written into DAC's weights.

Snake with a tiny alpha is the identity and a residual unit whose last kernel is zero passes its input on, so the
strided convolutions can be made to do plain linear algebra. The first three sort 64 samples into 64 channels; the
last one, 1024 samples wide, holds the product of an MDCT and the principal components of the speech it is made for.
The decoder is the transpose of that, and the MDCT's overlap makes it exact but for the components that were left out.
Each codebook looks up the 63 directions in which the residual varies most; its last dimension is a large constant,
which turns DAC's search by angle into one by distance.
"""

import numpy as np
from flax import nnx

from dia_jax.checkpoint import abstract_params
from dia_jax.config import DacConfig

CONFIG = DacConfig(encoder_size=8, decoder_size=128, codebook_dim=64)
LINEAR = 1e-4  # alpha of a Snake that should not be heard
BINS = 192  # of the MDCT's 512: up to 8.3 kHz
STAY = (1.0, 0.7, 0.4, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0)
"""See `encode`."""
WEIGHTING = 0.75  # how far loud bins are made equal to quiet ones


def mdct(bins: int, hop: int) -> np.ndarray:
    """The orthonormal MDCT with a sine window (Princen & Bradley, 1986): [bins, 2 hop]."""
    n, k = np.arange(2 * hop) + 0.5, np.arange(bins)[:, None] + 0.5
    return np.sqrt(2 / hop) * np.sin(np.pi * n / (2 * hop)) * np.cos(np.pi / hop * (n + hop / 2) * k)


def frames_of(samples: np.ndarray, hop: int) -> np.ndarray:
    """The 2 hop samples that the encoder's last convolution sees for each frame: they begin half a hop early."""
    padded = np.pad(samples, (hop // 2, hop))
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * hop)[: len(samples) : hop]


def build(clips: list[np.ndarray], *, seed: int = 0, progress: bool = False) -> tuple[nnx.GraphDef, nnx.State]:
    """The codec for speech like these clips, float32 [n] each, n a multiple of 512: graphdef and parameters."""
    rng = np.random.default_rng(seed)
    config, hop, latent = CONFIG, CONFIG.hop, CONFIG.latent_size
    transform = mdct(BINS, hop)
    coefficients = np.concatenate([frames_of(clip, hop) @ transform.T for clip in clips])
    coefficients += rng.standard_normal(coefficients.shape) * 1e-4

    scale = np.sqrt(np.mean(coefficients**2, axis=0)) + 1e-3
    weight = scale**-WEIGHTING
    weight /= np.sqrt(np.mean((scale * weight) ** 2))
    weighted = coefficients * weight
    components = np.linalg.eigh(weighted.T @ weighted)[1][:, ::-1][:, :latent]
    analysis, synthesis = components.T @ (transform * weight[:, None]), components.T @ (transform / weight[:, None])
    latents = (weighted @ components).astype(np.float32)

    graphdef, abstract = abstract_params(config)
    flat = nnx.to_flat_state(abstract)
    values = {".".join(map(str, path)): np.zeros(value.shape, np.float32) for path, value in flat}
    for path in values:
        if path.endswith(".alpha"):
            values[path][:] = LINEAR
    _encoder(values, analysis, config)
    _decoder(values, synthesis, config)
    _codebooks(values, latents, config, rng, progress)
    import jax.numpy as jnp

    state = [(path, value.replace(jnp.asarray(values[".".join(map(str, path))]))) for path, value in flat]
    return graphdef, nnx.from_flat_state(state)


def _encoder(values: dict[str, np.ndarray], analysis: np.ndarray, config: DacConfig) -> None:
    values["encoder.conv1.kernel"][3, 0, 0] = 1
    channels = 1
    for block, stride in enumerate(config.strides):
        kernel = values[f"encoder.block.{block}.conv1.kernel"]  # [2 stride, in, out]
        if block + 1 < len(config.strides):
            for offset in range(stride):
                for channel in range(channels):
                    kernel[stride // 2 + offset, channel, offset * channels + channel] = 1
            channels *= stride
        else:
            kernel[:, :channels] = analysis.reshape(-1, 2 * stride, channels).transpose(1, 2, 0)
    values["encoder.conv2.kernel"][1] = np.eye(config.latent_size)


def _decoder(values: dict[str, np.ndarray], synthesis: np.ndarray, config: DacConfig) -> None:
    latent = config.latent_size
    values["decoder.conv1.kernel"][3, :, :latent] = np.eye(latent)
    channels = config.hop // config.strides[-1]
    for block, stride in enumerate(config.strides[::-1]):
        kernel = values[f"decoder.block.{block}.conv_t1.kernel"][
            ::-1
        ]  # [2 stride, in, out]; stored the other way round
        if block == 0:
            kernel[:, :latent, :channels] = synthesis.reshape(latent, 2 * stride, channels).transpose(1, 0, 2)
            continue
        channels //= stride
        for offset in range(stride):
            for channel in range(channels):
                kernel[stride // 2 + offset, offset * channels + channel, channel] = 1
    values["decoder.conv2.kernel"][3, 0, 0] = 1


def _codebooks(
    values: dict[str, np.ndarray], latents: np.ndarray, config: DacConfig, rng: np.random.Generator, progress: bool
) -> None:
    dims, size = config.codebook_dim - 1, config.codebook_size
    energy, residual = np.mean(np.sum(latents**2, axis=1)), latents.copy()
    for number in range(config.num_codebooks):
        directions = np.linalg.eigh(residual.T @ residual)[1][:, -dims:].astype(np.float32)
        points = residual @ directions
        entries = points[rng.choice(len(points), size, replace=False)]
        for _ in range(12):
            nearest = _nearest(points, entries)
            sums, counts = np.zeros_like(entries), np.bincount(nearest, minlength=size)
            np.add.at(sums, nearest, points)
            spare = points[rng.integers(len(points), size=size)]
            entries = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], spare)
        residual -= entries[_nearest(points, entries)] @ directions.T
        constant = 3 * np.quantile(np.linalg.norm(points, axis=1), 0.999)
        name = f"quantizer.quantizers.{number}"
        values[f"{name}.in_proj.kernel"][0, :, :dims] = directions
        values[f"{name}.in_proj.bias"][dims] = constant
        values[f"{name}.out_proj.kernel"][0, :dims] = directions.T
        values[f"{name}.codebook"][:, :dims] = entries
        values[f"{name}.codebook"][:, dims] = constant
        if progress:
            print(f"codebook {number}: {10 * np.log10(energy / np.mean(np.sum(residual**2, axis=1))):.1f} dB, weighted")


def _nearest(points: np.ndarray, entries: np.ndarray) -> np.ndarray:
    half = np.sum(entries**2, axis=1) / 2
    parts = range(0, len(points), 20_000)
    return np.concatenate([np.argmax(points[i : i + 20_000] @ entries.T - half, axis=1) for i in parts])


def kernels(params: nnx.State) -> dict[str, np.ndarray]:
    """The parameters by path, as `encode` takes them."""
    return {".".join(map(str, path)): np.asarray(value[...]) for path, value in nnx.to_flat_state(params)}


def encode(values: dict[str, np.ndarray], samples: np.ndarray, *, stay: bool = True) -> np.ndarray:
    """The codes of a clip, int16 [T, C]: those of DAC's encoder, but that a code stays until another is clearly better.

    A frame keeps the code of the one before unless the new one is nearer by `STAY` times the codebook's mean squared
    distance. The later codebooks make up for what that costs, and there is less to be learnt. Without `stay` they are
    those of DAC's encoder.
    """
    kernel = values[f"encoder.block.{len(CONFIG.strides) - 1}.conv1.kernel"][:, : CONFIG.hop // CONFIG.strides[-1]]
    residual = frames_of(samples, CONFIG.hop).astype(np.float32) @ kernel.reshape(-1, CONFIG.latent_size)
    codes = []
    dims = values["quantizer.quantizers.0.codebook"].shape[1] - 1  # of this codec, which may be an older one
    for number, share in enumerate(STAY):
        name = f"quantizer.quantizers.{number}"
        entries, directions = values[f"{name}.codebook"][:, :dims], values[f"{name}.in_proj.kernel"][0, :, :dims]
        points = residual @ directions
        squares = np.square(points).sum(axis=1)[:, None] + np.square(entries).sum(axis=1)
        distances = squares - 2 * points @ entries.T
        chosen, price = distances.argmin(axis=1), share * distances.min(axis=1).mean()
        for t in range(1, len(chosen) if stay and share else 0):
            if distances[t, chosen[t - 1]] - price <= distances[t, chosen[t]]:
                chosen[t] = chosen[t - 1]
        codes.append(chosen)
        residual = residual - entries[chosen] @ directions.T
    return np.stack(codes, axis=1).astype(np.int16)
