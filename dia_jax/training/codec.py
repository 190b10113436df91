"""A run that trains DAC: reconstruction compared with the recording, as spectra.

The losses are those of DAC (Kumar et al., 2023) without its discriminators: L1 between log-mel spectra of seven
resolutions, L1 between log-magnitude spectra of two, and the codebook and commitment losses of VQ-VAE (van den Oord et
al., 2017), whose gradient passes the choice of an entry straight through. Entries that are not used are moved to where
the data is. Some excerpts use only the first few codebooks, so that these carry most of the signal.

Knows recordings, the codec's layers and the run's folder; knows no Dia.
"""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import soundfile
import soxr
from flax import nnx
from tqdm import tqdm

from dia_jax.audio import write_audio
from dia_jax.checkpoint import dac_to_json, load_params, new_directory, open_checkpoint, write_params
from dia_jax.codec import Codec
from dia_jax.config import DacConfig
from dia_jax.dac import Dac, Quantizer
from dia_jax.training.folder import RunFolder, mean_metrics
from dia_jax.training.prepare import read_manifest
from dia_jax.training.settings import CodecSettings, DataError, TrainingError, identity
from dia_jax.untrained import random_params

MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
"""Windows in samples, and the number of mel bands of each."""
STFT_WINDOWS = (2048, 512)
MIN_MAGNITUDE = 1e-5
"""Added to magnitudes before the logarithm."""


def mel_bands(bands: int, window: int, rate: int) -> np.ndarray:
    """Triangular filters, equally spaced in mel = 2595 log10(1 + f / 700) (O'Shaughnessy, 1987).

    Args:
        bands: number of filters.
        window: of the Fourier transform, in samples.
        rate: samples per second.

    Returns:
        float32 [window / 2 + 1, bands]. Each filter sums to 1, except those that are narrower than a bin and hold none.
    """
    edges = 700 * (10 ** (np.linspace(0, np.log10(1 + rate / 2 / 700), bands + 2)) - 1)
    bins = np.linspace(0, rate / 2, window // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles / np.maximum(triangles.sum(axis=0), 1e-9)).astype(np.float32)


def magnitudes(samples: jax.Array, window: int) -> jax.Array:
    """Magnitudes of Hann windows that overlap by three quarters: float32 [B, n] -> [B, frames, window / 2 + 1]."""
    hop = window // 4
    padded = jnp.pad(samples, ((0, 0), (window // 2, window // 2)), mode="reflect")
    count = (padded.shape[1] - window) // hop + 1
    frames = padded[:, np.arange(count)[:, None] * hop + np.arange(window)]
    spectrum = jnp.fft.rfft(frames * np.hanning(window + 1)[:-1].astype(np.float32))
    # The square root has no derivative at 0.
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + MIN_MAGNITUDE**2)


def spectral_losses(output: jax.Array, target: jax.Array, rate: int) -> tuple[jax.Array, jax.Array]:
    """The mel loss and the STFT loss: mean absolute differences of log10 magnitudes, summed over the resolutions.

    Args:
        output, target: float32 [B, n].
        rate: samples per second.
    """

    def difference(output: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.mean(jnp.abs(jnp.log10(output + MIN_MAGNITUDE) - jnp.log10(target + MIN_MAGNITUDE)))

    def to_mel(samples: jax.Array, window: int, bands: int) -> jax.Array:
        # TPUs and GPUs would multiply in fewer bits otherwise.
        weights = mel_bands(bands, window, rate)
        return jnp.matmul(magnitudes(samples, window), weights, precision=jax.lax.Precision.HIGHEST)

    mel, stft = jnp.float32(0), jnp.float32(0)
    for window, bands in MEL_SCALES:
        mel += difference(to_mel(output, window, bands), to_mel(target, window, bands))
    for window in STFT_WINDOWS:
        stft += difference(magnitudes(output, window), magnitudes(target, window))
    return mel, stft


@dataclasses.dataclass(frozen=True)
class Quantized:
    """The result of quantization in training.

    Attributes:
        latents: float32 [B, T, latent], the quantized latents; their gradient passes straight to the input.
        codebook, commitment: losses, scalars.
        counts: float32 [C, codebook_size], how often each entry was chosen.
        candidates: float32 [C, B * T, codebook_dim], the projected residuals, onto which unused entries can be moved.
    """

    latents: jax.Array
    codebook: jax.Array
    commitment: jax.Array
    counts: jax.Array
    candidates: jax.Array


def quantize(quantizer: Quantizer, latents: jax.Array, used: jax.Array) -> Quantized:
    """Residual quantization with straight-through gradients.

    Args:
        quantizer: the codec's.
        latents: float32 [B, T, latent].
        used: int [B], the number of codebooks that each excerpt uses.
    """
    residual, out = latents, jnp.zeros_like(latents)
    codebook_loss, commitment_loss, counts, candidates = jnp.float32(0), jnp.float32(0), [], []
    stop = jax.lax.stop_gradient
    for index, book in enumerate(quantizer.quantizers):
        is_used = (index < used).astype(jnp.float32)[:, None, None]
        codes = jnp.argmax(book.scores(residual), axis=-1)
        projected, entries = book.in_proj(residual), book.codebook[...][codes]
        commitment_loss += jnp.mean(jnp.square(projected - stop(entries)) * is_used)
        codebook_loss += jnp.mean(jnp.square(entries - stop(projected)) * is_used)
        part = book.out_proj(projected + stop(entries - projected))
        out, residual = out + part * is_used, residual - part
        counts.append(jnp.zeros(book.codebook.shape[0]).at[codes.reshape(-1)].add(1.0))
        candidates.append(stop(projected).reshape(-1, projected.shape[-1]))
    return Quantized(out, codebook_loss, commitment_loss, jnp.stack(counts), jnp.stack(candidates))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodecState:
    """What an update changes, and what a checkpoint holds.

    Attributes:
        step: int32, the number of updates made.
        params: the codec's weights.
        optimizer: optax's state.
        usage: float32 [C, codebook_size], a running average of how often each entry is chosen in a batch.
    """

    step: jax.Array
    params: Any
    optimizer: Any
    usage: jax.Array


def make_transform(settings: CodecSettings) -> optax.GradientTransformation:
    """AdamW with DAC's betas; with `decoder_only` the updates of all other weights are zero."""
    rate = optax.exponential_decay(settings.learning_rate, 1, settings.decay)
    adamw = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adamw(rate, b1=0.8, b2=0.99))
    if not settings.decoder_only:
        return adamw

    def label(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "trained" if path[0].key == "decoder" else "frozen", params
        )

    return optax.multi_transform({"trained": adamw, "frozen": optax.set_to_zero()}, label)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def update(
    graphdef: nnx.GraphDef[Dac],
    transform: optax.GradientTransformation,
    settings: CodecSettings,
    state: CodecState,
    samples: jax.Array,
) -> tuple[CodecState, dict[str, jax.Array]]:
    """Makes one update.

    Args:
        graphdef: of the codec.
        transform: see `make_transform`.
        settings: of the run.
        state: donated; use the returned one.
        samples: float32 [clips, n].

    Returns:
        the state, and the metrics: the loss and its parts, the mean perplexity of the codebooks, and the number of
        entries that were moved.
    """
    config = nnx.merge(graphdef, state.params).config
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    dropout_key, count_key, revive_key = jax.random.split(key, 3)
    clips, books = len(samples), config.num_codebooks
    dropout = settings.quantizer_dropout * (not settings.decoder_only)
    fewer = jax.random.uniform(dropout_key, (clips,)) < dropout
    used = jnp.where(fewer, jax.random.randint(count_key, (clips,), 1, books + 1), books)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], Quantized]]:
        module = nnx.merge(graphdef, params)
        quantized = quantize(module.quantizer, module.encoder(samples, _whole), used)
        mel, stft = spectral_losses(module.decoder(quantized.latents, _whole), samples, config.sample_rate)
        total = settings.mel_weight * mel + settings.stft_weight * stft
        total += settings.codebook_weight * quantized.codebook + settings.commitment_weight * quantized.commitment
        parts = {"loss": total, "mel": mel, "stft": stft, "codebook": quantized.codebook}
        return total, (parts | {"commitment": quantized.commitment}, quantized)

    (_, (metrics, quantized)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer = transform.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)

    usage = 0.99 * state.usage + 0.01 * quantized.counts
    shares = quantized.counts / quantized.counts.sum(axis=1, keepdims=True)
    metrics["perplexity"] = jnp.exp(-(shares * jnp.log(shares + 1e-9)).sum(axis=1)).mean()
    if not settings.decoder_only:
        dead = usage < settings.revive_below * usage.mean(axis=1, keepdims=True)
        module = nnx.merge(graphdef, params)
        for index, book in enumerate(module.quantizer.quantizers):
            key = jax.random.fold_in(revive_key, index)
            moved = jax.random.choice(key, quantized.candidates[index], usage.shape[1:])
            book.codebook[...] = jnp.where(dead[index][:, None], moved, book.codebook[...])
        params = nnx.state(module, nnx.Param)
        # A moved entry counts as averagely used, so that it has time to be chosen.
        usage = jnp.where(dead, usage.mean(axis=1, keepdims=True), usage)
        metrics["revived"] = dead.sum().astype(jnp.float32)
    return CodecState(state.step + 1, params, optimizer, usage), metrics


def _whole(x: jax.Array) -> jax.Array:
    """Zeroes nothing: an excerpt fills its batch, so that no layer sees what comes after its end."""
    return x


def find_recordings(source: str | os.PathLike) -> list[tuple[str, float]]:
    """Lists the paths and durations in seconds of the recordings in a manifest or a folder.

    Raises:
        DataError: the source has no recording, or one that cannot be read.
    """
    found = []
    for clip in read_manifest(source):
        try:
            info = soundfile.info(clip["path"])
            if not info.frames:
                raise OSError("it holds no sample")
            found.append((clip["path"], info.frames / info.samplerate))
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise DataError(
                f"{clip['path']} is not a readable audio file ({error}); take it out of {source}."
            ) from None
    return found


def excerpts(
    recordings: list[tuple[str, float]], config: DacConfig, settings: CodecSettings, *, start: int = 0
) -> Iterator[np.ndarray]:
    """Endless batches of random excerpts, read ahead in threads; batch i follows from the recordings, the seed and i.

    Args:
        recordings: see `find_recordings`; each is chosen in proportion to its duration.
        config: of the codec.
        settings: of the run.
        start: index of the first batch.

    Yields:
        float32 [clips, frames * hop].
    """
    paths, durations = zip(*recordings, strict=True)
    size, shares = settings.frames * config.hop, np.asarray(durations) / sum(durations)

    def read(path: str, duration: float, place: float) -> np.ndarray:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            file.seek(int(place * max(duration - size / config.sample_rate, 0) * rate))
            part = file.read(-(-size * rate // config.sample_rate), dtype="float32", always_2d=True).mean(axis=1)
        if rate != config.sample_rate:
            part = soxr.resample(part, rate, config.sample_rate)
        return np.pad(part[:size], (0, max(size - len(part), 0))).astype(np.float32)

    def batch(index: int) -> np.ndarray:
        rng = np.random.default_rng([settings.seed, start + index])
        chosen = rng.choice(len(paths), settings.clips, p=shares)
        places = rng.random(settings.clips)
        return np.stack([read(paths[i], durations[i], place) for i, place in zip(chosen, places, strict=True)])

    stream = grain.MapDataset.range(1 << 40).map(batch)
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def _digest(recordings: list[tuple[str, float]]) -> str:
    """A digest of names and durations, which is the same wherever the recordings are."""
    listed = json.dumps([(Path(path).name, duration) for path, duration in recordings])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def train_codec(
    run: str | os.PathLike,
    source: str | os.PathLike,
    settings: CodecSettings,
    *,
    base: str | os.PathLike | DacConfig,
    progress: bool = False,
) -> Path:
    """Trains a codec, from the beginning or from the last checkpoint in the run's folder.

    Args:
        run: the run's folder, outside of the source.
        source: recordings, see `prepare.read_manifest`; transcripts are not needed.
        settings: of the run.
        base: the checkpoint to start from, or the config of a codec to train from random weights.
        progress: show a progress bar.

    Returns:
        the folder of the trained codec, `run/codec`, in the layout of `transformers`.

    Raises:
        TrainingError: the settings do not fit the base or the run in the folder, or the loss is not finite any more.
        DataError: the recordings cannot be used.
        CheckpointError, ConfigError: the base cannot be read.
    """
    checkpoint = None if isinstance(base, DacConfig) else open_checkpoint(base)
    config: Any = base if checkpoint is None else checkpoint.config
    if not isinstance(config, DacConfig):
        raise TrainingError(f"{base} holds Dia, not a DAC codec.")
    if jax.process_count() > 1:
        raise TrainingError(f"A codec is trained by one process, but there are {jax.process_count()}.")
    if Path(source).is_dir() and Path(run).resolve().is_relative_to(Path(source).resolve()):
        raise TrainingError(f"{run} lies in {source}, where its samples would be taken for recordings; name another.")
    recordings = find_recordings(source)
    base_path, base_digest = (None, None) if checkpoint is None else (checkpoint.path, checkpoint.digest())
    run_identity = identity(settings) | {
        "codec": dac_to_json(config),
        "base": base_digest,
        "recordings": _digest(recordings),
    }
    folder = RunFolder(run, run_identity, base_path)
    graphdef, params = random_params(config, seed=settings.seed) if checkpoint is None else load_params(checkpoint)
    transform = make_transform(settings)
    usage = jnp.ones((config.num_codebooks, config.codebook_size)) * settings.clips * settings.frames
    state = CodecState(jnp.int32(0), params, transform.init(params), usage / config.codebook_size)
    del params
    with folder.checkpoints(settings.keep) as manager:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        state = folder.restore(manager, like) or state
        made = int(state.step)
        folder.discard_metrics_after(made)
        stream = excerpts(recordings, config, settings, start=made)
        pending: list[dict[str, jax.Array]] = []  # metrics since the last line
        began = time.monotonic()
        for number in tqdm(range(made + 1, settings.steps + 1), desc="training", disable=not progress):
            samples = next(stream)
            state, metrics = update(graphdef, transform, settings, state, samples)
            pending.append(metrics)
            save = number == settings.steps or number % settings.save_every == 0
            if save or number % settings.log_every == 0:
                line = mean_metrics(pending)  # waits for the updates
                speed = len(pending) * samples.size / config.sample_rate / (time.monotonic() - began)
                folder.log(number, **line, audio_per_second=round(speed, 2))
                pending = []
            if save:
                folder.plot(("loss", "mel", "stft"), unit="loss")
                _write_sample(folder.path / "samples", number, Codec(config, graphdef, state.params), samples[0])
                manager.save_async(number, state)
            if not pending:
                began = time.monotonic()
        manager.wait()
    target = folder.path / "codec"
    with new_directory(target, replace=True) as made_folder:
        write_params(made_folder, config, state.params, layout="transformers")
    return target


def _write_sample(folder: Path, step: int, codec: Codec, samples: np.ndarray) -> None:
    """Writes an excerpt, followed by its reconstruction, as one audio file."""
    folder.mkdir(exist_ok=True)
    both = np.concatenate([samples, codec.decode(codec.encode(samples))])
    write_audio(folder / f"{step:07}.wav", both, rate=codec.config.sample_rate)
