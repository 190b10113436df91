"""class Dia: from a checkpoint and a script to codes and samples.

Joins text, model, loop and codec, and checks what callers hand in. Knows numpy at its doors: scripts and prompts come
in, codes and float32 samples go out. Nothing here runs once a step.
"""

import dataclasses
import math
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from dia_jax import dac
from dia_jax.audio import prepare_audio, read_audio, write_audio
from dia_jax.checkpoint import DTYPES, CheckpointError, load_params, open_checkpoint
from dia_jax.config import DacConfig, DiaConfig, DiaError, Variant
from dia_jax.decode import Clip, decode_chunk, prefill, read_codes
from dia_jax.hub import resolve
from dia_jax.model import Quantize
from dia_jax.sampling import SamplingSettings
from dia_jax.text import encode_text

DEFAULT_REPO = "nari-labs/Dia-1.6B-0626"
DEFAULT_CODEC = "descript/dac_44khz"
SAMPLE_RATE = 44_100

PRNG = "threefry2x32"

CHUNK_STEPS = 86
"""Rows between two looks at the clips from the host: a second of audio, so that a progress bar moves."""


class SettingError(DiaError):
    """A setting outside its range, or a prompt that does not go with the scripts."""


AudioPrompt = Any
"""A path; a pair (samples, sample rate), see `audio.prepare_audio`; or codes, an int array [P, C]."""

Seed = int | jax.Array
"""An int in 0 .. 2**32 - 1, or a scalar key of `jax.random.key`."""


@dataclasses.dataclass(frozen=True)
class Codec:
    """A codec with its weights: what `nnx.split` gives, and the config."""

    config: DacConfig
    graphdef: nnx.GraphDef[dac.Dac]
    params: nnx.State


class Dia:
    """A Dia model ready to speak.

    Example:
        dia = Dia.from_pretrained("nari-labs/Dia-1.6B-0626")
        audio = dia.generate("[S1] Hello there. [S2] Hi! (laughs) [S1]", seed=1)
        dia.save_audio("hello.wav", audio)

    Args:
        config: of the model.
        graphdef, params: the model, split by `nnx.split`.
        codec: None to work on codes alone.
    """

    def __init__(self, config: DiaConfig, graphdef: nnx.GraphDef, params: nnx.State, *, codec: Codec | None = None):
        self.config = config
        self.graphdef = graphdef
        self.params = params
        self.codec = codec
        if codec is not None:
            sizes = (codec.config.num_codebooks, codec.config.codebook_size, codec.config.sample_rate)
            wanted = (config.decoder.num_channels, config.eos_token_id, SAMPLE_RATE)
            if sizes != wanted:
                raise CheckpointError(
                    f"This codec has {sizes[0]} codebooks of {sizes[1]} entries at {sizes[2]} Hz, but the model needs "
                    f"{wanted[0]} of {wanted[1]} at {wanted[2]} Hz."
                )

    @classmethod
    def from_pretrained(
        cls,
        repo_or_dir: str | os.PathLike = DEFAULT_REPO,
        *,
        codec: str | os.PathLike | None = None,
        load_codec: bool = True,
        dtype: str | None = None,
        quantize: Quantize | None = None,
        variant: Variant | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        progress: bool = False,
    ) -> "Dia":
        """Loads Dia, and the codec with it.

        Args:
            repo_or_dir: a hub repo, of which only what is needed is fetched; or a local directory or file, in the
                layout of the reference, of transformers, or our own.
            codec: likewise for DAC. By default a `dac/` folder inside the checkpoint's directory, if it has one,
                else `descript/dac_44khz`.
            load_codec: False leaves the codec out; `generate_codes` is all that then works, with codes as prompts.
            dtype: "float32", "bfloat16" or "float16"; by default bfloat16 on an accelerator and float32 on a CPU.
            quantize: "int8" keeps the kernels in int8, one scale an output: half the bytes of bfloat16. A checkpoint
                that was converted so is loaded so.
            variant: "0626" or "v0.1", for a checkpoint whose config does not tell its behaviour rightly.
            revision, cache_dir, local_files_only, token: see `hub.resolve`; revision is of the model's repo.
            progress: show progress bars.

        Raises:
            HubError, CheckpointError, ConfigError: it cannot be had, read or used; the message says why.
        """
        if dtype is None:
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        if dtype not in DTYPES:
            raise SettingError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
        if quantize not in (None, "int8"):
            raise SettingError(f'quantize is {quantize!r}; it must be "int8" or None.')
        access = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        path = resolve(repo_or_dir, revision=revision, **access)
        checkpoint = open_checkpoint(path, variant=variant)
        if not isinstance(checkpoint.config, DiaConfig):
            raise CheckpointError(f"{path} holds a DAC codec, not Dia; pass it as codec=.")
        if codec is not None and not load_codec:
            raise SettingError("A codec is named, but load_codec=False leaves it out.")
        loaded = None
        if load_codec:
            if codec is None:
                own = (path if path.is_dir() else path.parent) / "dac"
                codec = own if own.is_dir() else DEFAULT_CODEC
            loaded = load_codec_from(resolve(codec, **access), progress=progress)
        graphdef, params = load_params(checkpoint, dtype=dtype, quantize=quantize, progress=progress)
        return cls(checkpoint.config, graphdef, params, codec=loaded)

    # --- Generating --------------------------------------------------------------------------------------------------

    def generate(
        self,
        text: str | Sequence[str],
        *,
        audio_prompt: AudioPrompt | list[AudioPrompt | None] | None = None,
        max_tokens: int | None = None,
        cfg_scale: float = 3.0,
        temperature: float = 1.2,
        top_p: float = 0.95,
        cfg_filter_top_k: int = 45,
        seed: Seed | Sequence[Seed] | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Any:
        """Speaks a script, or several at once.

        Args:
            text: a script such as "[S1] Hello. [S2] Hi! (laughs)", or a list of them. With a voice prompt, the prompt's
                transcript stands first in the same script.
            audio_prompt: a voice to go on with: a path, a pair (samples, rate), or codes [P, C]. With a list of scripts
                a list, None where a clip has none; one prompt alone serves them all.
            max_tokens: new frames at most, 86.13 a second; None is all that fits. It does not count the prompt: n here
                is n + 16 + P in the reference, which counts the prompt, the delay and the start row too.
            cfg_scale: how strongly the script guides.
            temperature: 0 takes the likeliest token each time.
            top_p: in (0, 1].
            cfg_filter_top_k: tokens that stay candidates, chosen by the guided logits.
            seed: an int or key, or a list of one a clip; an int or key alone is used for each clip as if it were alone,
                so that a clip does not depend on the others. None draws new ones.
            truncate: cut a script that is too long, instead of refusing it.
            progress: show a progress bar.

        Returns:
            float32 array [n] at 44.1 kHz for a str, a list of them for a list. A clip that ends at once has n = 0.

        Raises:
            DiaError: an argument cannot be used; the message says which, and what could be.
        """
        self._codec()  # told before anything is generated
        codes = self.generate_codes(
            text,
            audio_prompt=audio_prompt,
            max_tokens=max_tokens,
            cfg_scale=cfg_scale,
            temperature=temperature,
            top_p=top_p,
            cfg_filter_top_k=cfg_filter_top_k,
            seed=seed,
            truncate=truncate,
            progress=progress,
        )
        clips = [codes] if isinstance(text, str) else codes
        audio = [self.decode_codes(clip) for clip in tqdm(clips, "decoding", disable=not progress)]
        return audio[0] if isinstance(text, str) else audio

    def generate_codes(
        self,
        text: str | Sequence[str],
        *,
        audio_prompt: AudioPrompt | list[AudioPrompt | None] | None = None,
        max_tokens: int | None = None,
        cfg_scale: float = 3.0,
        temperature: float = 1.2,
        top_p: float = 0.95,
        cfg_filter_top_k: int = 45,
        seed: Seed | Sequence[Seed] | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Any:
        """`generate` without the codec: int32 array [frames, C] for a str, a list of them for a list.

        The delay is undone and the prompt cut off. Arguments and errors are those of `generate`.
        """
        settings = check_settings(cfg_scale, temperature, top_p, cfg_filter_top_k)
        clips = self._clips(text, audio_prompt, max_tokens, seed, truncate)
        codes = self._decode(clips, settings, progress=progress)
        return codes[0] if isinstance(text, str) else codes

    def _decode(self, clips: list[Clip], settings: SamplingSettings, *, progress: bool) -> list[np.ndarray]:
        frame_rate = self.codec.config.frame_rate if self.codec else SAMPLE_RATE / DacConfig().hop
        shape = "{desc}{n:.1f} s of audio [{elapsed}{postfix}]"
        with tqdm(desc="preparing, compiling if new", disable=not progress, bar_format=shape) as bar:
            state = prefill(self.graphdef, self.params, self.config, clips)
            start = np.asarray(state.row)[: len(clips)]
            began, first_chunk = time.monotonic(), 0.0
            while not np.asarray(state.done).all():
                state = decode_chunk(self.graphdef, self.params, state, settings, np.int32(CHUNK_STEPS))
                seconds = float((np.asarray(state.row)[: len(clips)] - start).sum()) / frame_rate
                now = time.monotonic()
                if first_chunk:  # the first one may have compiled, so it does not count as speed
                    bar.set_postfix_str(f"{(seconds - first_chunk) / (now - began):.2f} x real time")
                else:
                    began, first_chunk = now, seconds
                    bar.set_description_str("speaking ")
                bar.update(seconds - bar.n)
        grid, end_row = np.asarray(state.grid), np.asarray(state.end_row)
        return [
            read_codes(grid[i], start=len(clip.prompt), stop=int(end_row[i]) - 1, config=self.config)
            for i, clip in enumerate(clips)
        ]

    # --- Codes and samples -------------------------------------------------------------------------------------------

    def encode_audio(self, audio: AudioPrompt) -> np.ndarray:
        """Turns a recording into codes.

        Args:
            audio: a path, or a pair (samples, rate); any rate, mono or not.

        Returns:
            int32 [frames, C].

        Raises:
            AudioError: it cannot be read, or is empty or silent.
        """
        return self._encode(self._samples(audio))

    def _encode(self, samples: np.ndarray) -> np.ndarray:
        codec = self._codec()
        return dac.encode_samples((codec.graphdef, codec.params), samples, config=codec.config)

    def decode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Turns codes, int [frames, C], into float32 samples [frames * 512] at 44.1 kHz."""
        codec = self._codec()
        return dac.decode_codes((codec.graphdef, codec.params), self._check_codes(codes), config=codec.config)

    def save_audio(self, path: str | os.PathLike, audio: np.ndarray) -> None:
        """Writes samples [n] at 44.1 kHz to a .wav, .flac, .ogg or .mp3 file; it appears whole or not at all."""
        write_audio(path, audio, rate=SAMPLE_RATE)

    # --- Checking what is handed in ----------------------------------------------------------------------------------

    def _codec(self) -> Codec:
        if self.codec is None:
            raise SettingError("This needs the codec, but the model was loaded without (load_codec=False).")
        return self.codec

    def _samples(self, audio: AudioPrompt) -> np.ndarray:
        rate = self._codec().config.sample_rate
        if isinstance(audio, (str, os.PathLike)):
            return read_audio(audio, rate=rate)
        if isinstance(audio, tuple) and len(audio) == 2:
            return prepare_audio(*audio, rate=rate)
        raise SettingError(f"Audio must be a path or a pair (samples, rate), not {type(audio).__name__}.")

    def _check_codes(self, codes: Any) -> np.ndarray:
        channels, size = self.config.decoder.num_channels, self.config.eos_token_id
        try:
            array = np.asarray(codes)
        except ValueError:
            raise SettingError(f"Codes must be an integer array [frames, {channels}], not a ragged list.") from None
        if array.ndim != 2 or array.shape[1] != channels or array.dtype.kind not in "iu":
            raise SettingError(f"Codes must be an integer array [frames, {channels}], not {array.dtype} {array.shape}.")
        if array.size and not (array.min() >= 0 and array.max() < size):
            raise SettingError(f"Codes must lie in 0 .. {size - 1}; these go from {array.min()} to {array.max()}.")
        return array.astype(np.int32)

    def _prompt_codes(self, prompt: AudioPrompt | None) -> np.ndarray:
        if prompt is None:
            return np.zeros((0, self.config.decoder.num_channels), np.int32)
        if isinstance(prompt, (str, os.PathLike, tuple)):
            samples = self._samples(prompt)
            self._room(-(-len(samples) // self._codec().config.hop))  # before a long one is encoded for nothing
            return self._encode(samples)
        if isinstance(prompt, np.ndarray) and prompt.dtype.kind == "f":
            raise SettingError("An audio prompt of samples needs its sample rate: pass the pair (samples, rate).")
        return self._check_codes(prompt)

    def _room(self, prompt_frames: int) -> int:
        """Frames left for what is new."""
        room = self.config.frame_budget - prompt_frames
        if room < 1:
            raise SettingError(
                f"The audio prompt is {prompt_frames} frames long; the model's {self.config.decoder.max_length} rows "
                f"hold {self.config.frame_budget} frames with what is to be spoken; use a prompt of 5 to 10 s."
            )
        return room

    def _clips(
        self,
        text: str | Sequence[str],
        audio_prompt: AudioPrompt | list[AudioPrompt | None] | None,
        max_tokens: int | None,
        seed: Seed | Sequence[Seed] | None,
        truncate: bool,
    ) -> list[Clip]:
        if not isinstance(text, (str, list, tuple)):
            raise SettingError(f"A script must be a string, or several a list of them, not {type(text).__name__}.")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise SettingError("There is no script to speak: the list is empty.")
        encoder = self.config.encoder
        tokens = [encode_text(t, max_length=encoder.max_length, truncate=truncate) for t in texts]
        highest = max(int(t.max()) for t in tokens)
        if highest >= encoder.vocab_size:
            raise SettingError(
                f"A script holds the byte {highest}, but this model knows only those below {encoder.vocab_size}."
            )
        if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, (int, np.integer))):
            raise SettingError(f"max_tokens is {max_tokens!r}; it must be a whole number of frames, or None.")
        keys = _keys(seed, len(texts))

        prompts = list(audio_prompt) if isinstance(audio_prompt, list) else [audio_prompt] * len(texts)
        if len(prompts) != len(texts):
            raise SettingError(
                f"There are {len(texts)} scripts but {len(prompts)} audio prompts; give one each, or None."
            )
        if isinstance(audio_prompt, list):
            codes = [self._prompt_codes(prompt) for prompt in prompts]
        else:
            codes = [self._prompt_codes(audio_prompt)] * len(texts)

        clips = []
        for t, prompt, key in zip(tokens, codes, keys, strict=True):
            room = self._room(len(prompt))
            frames = room if max_tokens is None else int(max_tokens)
            if not 1 <= frames <= room:
                prompt_words = f" beside a prompt of {len(prompt)}" if len(prompt) else ""
                raise SettingError(
                    f"max_tokens is {frames}; the model's {self.config.decoder.max_length} rows leave room for 1 to "
                    f"{room} new frames{prompt_words}."
                )
            clips.append(Clip(text=t, prompt=prompt, max_frames=frames, key=key))
        return clips


def check_settings(cfg_scale: Any, temperature: Any, top_p: Any, cfg_filter_top_k: Any) -> SamplingSettings:
    """Checks how tokens are to be drawn, as far as that can be done without a model.

    Raises:
        SettingError: a setting is no number or outside its range.
    """
    ranges = (
        ("cfg_scale", cfg_scale, lambda x: 0 <= x <= 1e6, "a number from 0 (no guidance) up"),
        (
            "temperature",
            temperature,
            lambda x: x == 0 or 1e-6 <= x <= 1e6,
            "0 (always the likeliest) or a number above",
        ),
        ("top_p", top_p, lambda x: 0 < x <= 1, "a number above 0, at most 1"),
        (
            "cfg_filter_top_k",
            cfg_filter_top_k,
            lambda x: x >= 1 and x == int(x) and x < 2**24,
            "a whole number from 1 up",
        ),
    )
    values = []
    for name, value, fits, wanted in ranges:
        try:
            if isinstance(value, (bool, str, bytes, complex, np.complexfloating)):
                raise TypeError
            number = float(value)
            good = math.isfinite(number) and fits(number)
        except (TypeError, ValueError, OverflowError):
            good, number = False, 0.0
        if not good:
            raise SettingError(f"{name} is {value!r}; it must be {wanted}.")
        values.append(number)
    # Traced, so their types must not change from call to call.
    scale, heat, mass = map(np.float32, values[:3])
    return SamplingSettings(scale, heat, mass, np.int32(values[3]))


def load_codec_from(path: str | os.PathLike, *, progress: bool = False) -> Codec:
    """Loads a DAC codec from a local directory or file.

    Raises:
        CheckpointError, ConfigError: it cannot be read or used.
    """
    checkpoint = open_checkpoint(Path(path))
    if not isinstance(checkpoint.config, DacConfig):
        raise CheckpointError(f"{path} holds Dia, not a DAC codec.")
    return Codec(checkpoint.config, *load_params(checkpoint, progress=progress))


def check_seed(value: Any) -> jax.Array:
    """Turns a seed into a key. The generator is always threefry: what others draw under vmap depends on the batch.

    Raises:
        SettingError: it is neither a whole number in 0 .. 2**32 - 1 nor a scalar threefry key.
    """
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        if value.ndim == 0 and str(jax.random.key_impl(value)) == PRNG:
            return value
        raise SettingError(f"seed is a key {value.dtype}{list(value.shape)}; it must be a scalar one of {PRNG}.")
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if isinstance(value, (jax.Array, np.ndarray)):
        is_int = value.ndim == 0 and value.dtype.kind in "iu"
    if not is_int or not 0 <= int(value) < 2**32:
        raise SettingError(f"seed is {value!r}; it must be a whole number from 0 to {2**32 - 1}, or a jax.random.key.")
    return jax.random.key(np.uint32(int(value)), impl=PRNG)


def _keys(seed: Seed | Sequence[Seed] | None, count: int) -> list[jax.Array]:
    if seed is None:
        return [check_seed(secrets.randbits(32)) for _ in range(count)]
    if isinstance(seed, (list, tuple)) or (isinstance(seed, (jax.Array, np.ndarray)) and seed.ndim == 1):
        seeds = list(seed)
        if len(seeds) != count:
            raise SettingError(f"There are {count} scripts but {len(seeds)} seeds; give one each, or one for all.")
        return [check_seed(value) for value in seeds]
    return [check_seed(seed)] * count
