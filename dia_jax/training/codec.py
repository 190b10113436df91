"""Training DAC: what it hears back against what was said, as spectra.

The losses are those of DAC (Kumar et al., 2023) without its adversary: L1 between log-mel spectra of seven resolutions,
L1 between log-magnitude spectra of two, and the codebook and commitment losses of VQ-VAE (van den Oord et al., 2017),
whose gradient passes the choice of an entry by (straight through). Entries that nobody chooses are moved to where the
data is. Some clips use only the first few codebooks, so that these learn to do most of the work.

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
from dia_jax.config import DacConfig
from dia_jax.dac import Dac, Quantizer
from dia_jax.training.data import DataError, read_manifest
from dia_jax.training.run import RunFolder, TrainingError, check_numbers, means
from dia_jax.untrained import random_params

MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
"""Windows, in samples, and the mel bands of each."""
STFT_WINDOWS = (2048, 512)
QUIETEST = 1e-5
"""Magnitudes below this count as this, before the logarithm."""


@dataclasses.dataclass(frozen=True)
class CodecSettings:
    """A run. Changing any of these but those in `FREE` makes another run of it.

    Attributes:
        steps: updates of the weights, in all.
        learning_rate: at the beginning; it falls by `decay` each step.
        decay: see above.
        clips, frames: of a batch: so many stretches of so many frames.
        mel_weight, stft_weight, codebook_weight, commitment_weight: of the losses.
        quantizer_dropout: the share of clips that use only the first few codebooks, a random number of them.
        revive_below: an entry that is chosen less often than this share of what an equal use of all would be is moved
            onto a residual of the batch.
        decoder_only: trains the decoder alone, which leaves the codes as they are: what was prepared stays valid.
        clip_norm: gradients whose norm over all weights is larger are scaled down to it.
        seed: of initial weights and of batches.
        log_every, save_every: intervals, in updates.
        keep: checkpoints that are kept.
    """

    steps: int = 100_000
    learning_rate: float = 1e-4
    decay: float = 0.999996
    clips: int = 8
    frames: int = 64
    mel_weight: float = 15.0
    stft_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    quantizer_dropout: float = 0.5
    revive_below: float = 0.01
    decoder_only: bool = False
    clip_norm: float = 1000.0
    seed: int = 0
    log_every: int = 20
    save_every: int = 500
    keep: int = 2

    def __post_init__(self):
        for name in ("steps", "clips", "frames", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        check_numbers(self.learning_rate, self.seed)
        if not 0 <= self.quantizer_dropout <= 1:
            raise TrainingError(f"quantizer_dropout is {self.quantizer_dropout}; it must lie in 0 .. 1.")


FREE = ("steps", "log_every", "save_every", "keep")
"""Settings that may change when a run is gone on with."""


# --- Losses ----------------------------------------------------------------------------------------------------------


def mel_bands(bands: int, window: int, rate: int) -> np.ndarray:
    """Triangles, equally spaced in mel = 2595 log10(1 + f / 700) (O'Shaughnessy, 1987): [window / 2 + 1, bands].

    Each sums to 1, if it is as wide as a bin at least.
    """
    edges = 700 * (10 ** (np.linspace(0, np.log10(1 + rate / 2 / 700), bands + 2)) - 1)
    bins = np.linspace(0, rate / 2, window // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles / np.maximum(triangles.sum(axis=0), 1e-9)).astype(np.float32)


def magnitudes(samples: jax.Array, window: int) -> jax.Array:
    """float32 [B, n] -> magnitudes [B, frames, window / 2 + 1], Hann windows that overlap by three quarters."""
    hop = window // 4
    padded = jnp.pad(samples, ((0, 0), (window // 2, window // 2)), mode="reflect")
    count = (padded.shape[1] - window) // hop + 1
    frames = padded[:, np.arange(count)[:, None] * hop + np.arange(window)]
    spectrum = jnp.fft.rfft(frames * np.hanning(window + 1)[:-1].astype(np.float32))
    # The root of 0 has no derivative.
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + QUIETEST**2)


def spectral_losses(heard: jax.Array, said: jax.Array, rate: int) -> tuple[jax.Array, jax.Array]:
    """The mel and the STFT loss between float32 [B, n] and [B, n]: mean absolute differences of log10 magnitudes."""

    def difference(heard: jax.Array, said: jax.Array) -> jax.Array:
        return jnp.mean(jnp.abs(jnp.log10(heard + QUIETEST) - jnp.log10(said + QUIETEST)))

    mel = jnp.float32(0)
    for window, bands in MEL_SCALES:
        weights = mel_bands(bands, window, rate)
        mel += difference(magnitudes(heard, window) @ weights, magnitudes(said, window) @ weights)
    stft = sum((difference(magnitudes(heard, w), magnitudes(said, w)) for w in STFT_WINDOWS), jnp.float32(0))
    return mel, stft


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of latents while it is trained.

    Attributes:
        latents: float32 [B, T, latent], with the gradient of what went in.
        codebook, commitment: losses.
        counts: float32 [C, codebook_size], how often each entry was chosen.
        candidates: float32 [C, B * T, codebook_dim], what was looked up.
    """

    latents: jax.Array
    codebook: jax.Array
    commitment: jax.Array
    counts: jax.Array
    candidates: jax.Array


def quantize(quantizer: Quantizer, latents: jax.Array, used: jax.Array) -> Quantized:
    """Residual quantization with the gradients that training wants.

    Args:
        latents: float32 [B, T, latent].
        used: int [B], how many codebooks each clip uses.
    """
    residual, out = latents, jnp.zeros_like(latents)
    codebook_loss, commitment_loss, counts, candidates = jnp.float32(0), jnp.float32(0), [], []
    for number, each in enumerate(quantizer.quantizers):
        takes_part = (number < used).astype(jnp.float32)[:, None, None]
        codes = jnp.argmax(each.scores(residual), axis=-1)
        wanted, entries = each.in_proj(residual), each.codebook[...][codes]
        stop = jax.lax.stop_gradient
        commitment_loss += jnp.mean(jnp.square(wanted - stop(entries)) * takes_part)
        codebook_loss += jnp.mean(jnp.square(entries - stop(wanted)) * takes_part)
        part = each.out_proj(wanted + stop(entries - wanted))
        out, residual = out + part * takes_part, residual - part
        counts.append(jnp.zeros(each.codebook.shape[0]).at[codes.reshape(-1)].add(1.0))
        candidates.append(stop(wanted).reshape(-1, wanted.shape[-1]))
    return Quantized(out, codebook_loss, commitment_loss, jnp.stack(counts), jnp.stack(candidates))


# --- A step ----------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodecState:
    """What a step changes.

    Attributes:
        step: int32, updates made.
        params: the codec's weights.
        optimizer: optax's state.
        usage: float32 [C, codebook_size], a running average of how often each entry is chosen.
    """

    step: jax.Array
    params: Any
    optimizer: Any
    usage: jax.Array


def make_transform(settings: CodecSettings) -> optax.GradientTransformation:
    """AdamW with DAC's betas; with `decoder_only` everything else stands still."""
    rate = optax.exponential_decay(settings.learning_rate, 1, settings.decay)
    moving = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adamw(rate, b1=0.8, b2=0.99))
    if not settings.decoder_only:
        return moving

    def label(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: "yes" if path[0].key == "decoder" else "no", params)

    return optax.multi_transform({"yes": moving, "no": optax.set_to_zero()}, label)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def update(
    graphdef: nnx.GraphDef[Dac],
    transform: optax.GradientTransformation,
    settings: CodecSettings,
    state: CodecState,
    samples: jax.Array,
) -> tuple[CodecState, dict[str, jax.Array]]:
    """One update from float32 [clips, n], and what to note of it."""
    config = nnx.merge(graphdef, state.params).config
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    drop, number, revive = jax.random.split(key, 3)
    clips, books = len(samples), config.num_codebooks
    fewer = jax.random.uniform(drop, (clips,)) < settings.quantizer_dropout * (not settings.decoder_only)
    used = jnp.where(fewer, jax.random.randint(number, (clips,), 1, books + 1), books)

    def of(params: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], Quantized]]:
        module = nnx.merge(graphdef, params)
        quantized = quantize(module.quantizer, module.encoder(samples, _whole), used)
        heard = module.decoder(quantized.latents, _whole)
        mel, stft = spectral_losses(heard, samples, config.sample_rate)
        total = settings.mel_weight * mel + settings.stft_weight * stft
        total += settings.codebook_weight * quantized.codebook + settings.commitment_weight * quantized.commitment
        parts = {"loss": total, "mel": mel, "stft": stft, "codebook": quantized.codebook}
        return total, (parts | {"commitment": quantized.commitment}, quantized)

    (_, (parts, quantized)), gradients = jax.value_and_grad(of, has_aux=True)(state.params)
    updates, optimizer = transform.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)

    usage = 0.99 * state.usage + 0.01 * quantized.counts
    shares = quantized.counts / quantized.counts.sum(axis=1, keepdims=True)
    parts["perplexity"] = jnp.exp(-(shares * jnp.log(shares + 1e-9)).sum(axis=1)).mean()
    if not settings.decoder_only:
        dead = usage < settings.revive_below * usage.mean(axis=1, keepdims=True)
        module = nnx.merge(graphdef, params)
        for book, each in enumerate(module.quantizer.quantizers):
            picked = jax.random.choice(jax.random.fold_in(revive, book), quantized.candidates[book], usage.shape[1:])
            each.codebook[...] = jnp.where(dead[book][:, None], picked, each.codebook[...])
        params = nnx.state(module, nnx.Param)
        usage = jnp.where(dead, usage.mean(axis=1, keepdims=True), usage)  # time to be chosen
        parts["revived"] = dead.sum().astype(jnp.float32)
    return CodecState(state.step + 1, params, optimizer, usage), parts


def _whole(x: jax.Array) -> jax.Array:
    return x


# --- The run ---------------------------------------------------------------------------------------------------------


def find_recordings(source: str | os.PathLike) -> list[tuple[str, float]]:
    """Paths and seconds of what a manifest or a folder names.

    Raises:
        DataError: the source names no recording, or one that cannot be read.
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


def stretches(
    recordings: list[tuple[str, float]], config: DacConfig, settings: CodecSettings, *, start: int = 0
) -> Iterator[np.ndarray]:
    """Endless batches float32 [clips, frames * hop] of random stretches; batch i follows from the seed."""
    paths, lengths = zip(*recordings, strict=True)
    wanted, shares = settings.frames * config.hop, np.asarray(lengths) / sum(lengths)

    def read(path: str, length: float, place: float) -> np.ndarray:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            file.seek(int(place * max(length - wanted / config.sample_rate, 0) * rate))
            part = file.read(-(-wanted * rate // config.sample_rate), dtype="float32", always_2d=True).mean(axis=1)
        if rate != config.sample_rate:
            part = soxr.resample(part, rate, config.sample_rate)
        return np.pad(part[:wanted], (0, max(wanted - len(part), 0))).astype(np.float32)

    def batch(index: int) -> np.ndarray:
        rng = np.random.default_rng([settings.seed, start + index])
        chosen = rng.choice(len(paths), settings.clips, p=shares)
        places = rng.random(settings.clips)
        return np.stack([read(paths[i], lengths[i], place) for i, place in zip(chosen, places, strict=True)])

    stream = grain.MapDataset.range(1 << 40).map(batch)
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def _digest(recordings: list[tuple[str, float]]) -> str:
    """Tells recordings from others, wherever they lie: by names and lengths."""
    told = json.dumps([(Path(path).name, length) for path, length in recordings])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def train_codec(
    run: str | os.PathLike,
    source: str | os.PathLike,
    settings: CodecSettings,
    *,
    base: str | os.PathLike | DacConfig,
    progress: bool = False,
) -> Path:
    """Trains a codec, from the beginning or from where the run's folder stands.

    Args:
        run: its folder, outside of the source.
        source: recordings, see `data.read_manifest`; transcripts are not needed.
        settings: of the run.
        base: the checkpoint to begin with; or the config of a codec to be trained from random weights.
        progress: show a progress bar.

    Returns:
        the folder of the trained codec, `run/codec`, in the layout of `transformers`.

    Raises:
        TrainingError, DataError, CheckpointError, ConfigError: see there.
    """
    checkpoint = None if isinstance(base, DacConfig) else open_checkpoint(base)
    config: Any = base if checkpoint is None else checkpoint.config
    if not isinstance(config, DacConfig):
        raise TrainingError(f"{base} holds Dia, not a DAC codec.")
    if jax.process_count() > 1:
        raise TrainingError(f"A codec is trained by one process, and here are {jax.process_count()}.")
    if Path(source).is_dir() and Path(run).resolve().is_relative_to(Path(source).resolve()):
        raise TrainingError(f"{run} lies in {source}, where its samples would be taken for recordings; name another.")
    recordings = find_recordings(source)
    what = {name: value for name, value in dataclasses.asdict(settings).items() if name not in FREE}
    what |= {"codec": dac_to_json(config), "base": checkpoint and checkpoint.digest()}
    what["recordings"] = _digest(recordings)
    folder = RunFolder(run, what, None if checkpoint is None else checkpoint.path)
    graphdef, params = random_params(config, seed=settings.seed) if checkpoint is None else load_params(checkpoint)
    transform = make_transform(settings)
    usage = jnp.ones((config.num_codebooks, config.codebook_size)) * settings.clips * settings.frames
    state = CodecState(jnp.int32(0), params, transform.init(params), usage / config.codebook_size)
    del params
    with folder.checkpoints(settings.keep) as manager:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        state = folder.restore(manager, like) or state
        first = int(state.step)
        folder.forget_after(first)
        stream = stretches(recordings, config, settings, start=first)
        noted: list[dict[str, jax.Array]] = []
        began = time.monotonic()
        for number in tqdm(range(first + 1, settings.steps + 1), desc="training", disable=not progress):
            samples = next(stream)
            state, parts = update(graphdef, transform, settings, state, samples)
            noted.append(parts)
            save = number == settings.steps or number % settings.save_every == 0
            if save or number % settings.log_every == 0:
                line = means(noted)
                seconds = len(noted) * samples.size / config.sample_rate / (time.monotonic() - began)
                folder.note(number, **line, audio_per_second=round(seconds, 2))
                noted = []
            if save:
                folder.picture(("loss", "mel", "stft"), unit="loss")
                _listen(folder.path / "samples", number, graphdef, state, samples, config)
                manager.save_async(number, state)
            if not noted:
                began = time.monotonic()
        manager.wait()
    target = folder.path / "codec"
    with new_directory(target, replace=True) as made:
        write_params(made, config, state.params, layout="transformers")
    return target


def _listen(folder: Path, step: int, graphdef: Any, state: CodecState, samples: np.ndarray, config: DacConfig) -> None:
    """Writes the first clip of a batch, and behind it what the codec makes of it."""
    folder.mkdir(exist_ok=True)
    module = nnx.merge(graphdef, state.params)
    valid = jnp.array([samples.shape[1] // config.hop])
    heard = np.asarray(module.decode(module.encode(samples[:1], valid), valid))[0]
    write_audio(folder / f"{step:07}.wav", np.concatenate([samples[0], heard]), rate=config.sample_rate)
