"""class Dia: from a checkpoint and a script to codes and samples.

Joins text, model, loop and codec, and checks what callers hand in. Knows numpy at its doors: scripts and prompts come
in, codes and float32 samples go out. Nothing here runs once a step.
"""

import dataclasses
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from dia_jax import dac
from dia_jax.audio import prepare_audio, read_audio, write_audio
from dia_jax.batch import Batch, run
from dia_jax.checkpoint import DTYPES, CheckpointError, codec_beside, load_params, open_checkpoint
from dia_jax.config import DacConfig, DiaConfig, DiaError, SamplingSettings, Variant
from dia_jax.decode import Clip, bucket
from dia_jax.hub import resolve
from dia_jax.model import Quantize
from dia_jax.text import encode_text

DEFAULT_REPO = "nari-labs/Dia-1.6B-0626"
DEFAULT_CODEC = "descript/dac_44khz"
SAMPLE_RATE = 44_100

PRNG = "threefry2x32"

FIRST_FRAMES = 8
"""Frames of a stream's first chunk: a tenth of a second, for which 33 rows must be drawn."""


class SettingError(DiaError):
    """A setting outside its range, or a prompt that does not go with the scripts."""


class ClipErrors(DiaError):
    """Some clips of a list could not be made; raised when the others are.

    Attributes:
        errors: what was wrong, by the clip's index in the list.
        results: what `generate` would have returned, None where a clip failed.
    """

    def __init__(self, errors: dict[int, DiaError], results: list[np.ndarray | None]):
        self.errors, self.results = errors, results
        listed = " ".join(f"[{i}] {error}" for i, error in sorted(errors.items()))
        made = f"; the other {len(results) - len(errors)} are made" if len(errors) < len(results) else ""
        super().__init__(f"{len(errors)} of {len(results)} clips cannot be made{made}. {listed}")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while clips were made.

    Attributes:
        results: the finished clips, None where one is not.
    """

    def __init__(self, results: list[np.ndarray | None]):
        self.results = results
        super().__init__(
            f"{sum(clip is not None for clip in results)} of {len(results)} clips were finished and are kept"
        )


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

    @property
    def module(self) -> tuple[nnx.GraphDef[dac.Dac], nnx.State]:
        """As the functions of `dac` take it."""
        return self.graphdef, self.params


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
        adapter: str | os.PathLike | None = None,
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
                layout of the reference, of transformers, or our own; or "tiny", the small demonstration voice in the
                package.
            codec: likewise for DAC. By default a `dac/` folder inside the checkpoint's directory, if it has one,
                else `descript/dac_44khz`.
            load_codec: False leaves the codec out; `generate_codes` is all that then works, with codes as prompts.
            dtype: "float32", "bfloat16" or "float16"; by default bfloat16 on an accelerator and float32 on a CPU.
            quantize: "int8" keeps the kernels in int8, one scale an output: half the bytes of bfloat16. A checkpoint
                that was converted so is loaded so.
            adapter: a directory that `dia-jax train --lora-rank` wrote; it is merged into the kernels as they are read.
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
            codec = codec or codec_beside(path) or DEFAULT_CODEC
            loaded = load_codec_from(resolve(codec, **access), progress=progress)
        graphdef, params = load_params(checkpoint, dtype=dtype, quantize=quantize, adapter=adapter, progress=progress)
        return cls(checkpoint.config, graphdef, params, codec=loaded)

    # --- Generating --------------------------------------------------------------------------------------------------

    def generate(
        self,
        text: str | Sequence[str],
        *,
        audio_prompt: AudioPrompt | list[AudioPrompt | None] | None = None,
        max_tokens: int | None = None,
        cfg_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        cfg_filter_top_k: int | None = None,
        seed: Seed | Sequence[Seed] | None = None,
        truncate: bool = False,
        batch_size: int = 8,
        on_clip: Callable[[int, np.ndarray], None] | None = None,
        progress: bool = False,
    ) -> Any:
        """Speaks a script, or any number of them.

        Args:
            text: a script such as "[S1] Hello. [S2] Hi! (laughs)", or a list of them. With a voice prompt, the prompt's
                transcript stands first in the same script.
            audio_prompt: a voice to go on with: a path, a pair (samples, rate), or codes [P, C]. With a list of scripts
                a list, None where a clip has none; one prompt alone serves them all.
            max_tokens: new frames at most, 86.13 a second; None is all that fits. It does not count the prompt: n here
                is n + 16 + P in the reference, which counts the prompt, the delay and the start row too.
            cfg_scale: how strongly the script guides. This and the next three are the model's own, `config.sampling`,
                where they are None: for Dia-1.6B the reference's 3.0, 1.2, 0.95 and 45.
            temperature: 0 takes the likeliest token each time.
            top_p: in (0, 1].
            cfg_filter_top_k: tokens that stay candidates, chosen by the guided logits.
            seed: an int or key, or a list of one a clip; an int or key alone is used for each clip as if it were alone,
                so that a clip does not depend on the others. None draws new ones.
            truncate: cut a script that is too long, instead of refusing it.
            batch_size: clips that are decoded together; more are faster in all, as far as memory goes.
            on_clip: called with index and result of each clip as soon as it is finished, the shortest often first.
            progress: show a progress bar.

        Returns:
            float32 array [n] at 44.1 kHz for a str, a list of them for a list. A clip that ends at once has n = 0.

        Raises:
            DiaError: an argument cannot be used; the message says which, and what could be.
            ClipErrors: some clips of a list cannot be made; it holds the others.
            Interrupted: by Ctrl-C, after the call of the loop that was under way; it holds the finished clips.
        """
        self._codec()  # told before anything is generated
        settings = check_settings(self.config.sampling, cfg_scale, temperature, top_p, cfg_filter_top_k)
        clips = self._clips(text, audio_prompt, max_tokens, seed, truncate)
        results = self._run(clips, settings, self.decode_codes, batch_size, on_clip, progress)
        return results[0] if isinstance(text, str) else results

    def generate_codes(
        self,
        text: str | Sequence[str],
        *,
        audio_prompt: AudioPrompt | list[AudioPrompt | None] | None = None,
        max_tokens: int | None = None,
        cfg_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        cfg_filter_top_k: int | None = None,
        seed: Seed | Sequence[Seed] | None = None,
        truncate: bool = False,
        batch_size: int = 8,
        on_clip: Callable[[int, np.ndarray], None] | None = None,
        progress: bool = False,
    ) -> Any:
        """`generate` without the codec: int32 array [frames, C] for a str, a list of them for a list.

        The delay is undone and the prompt cut off. Arguments and errors are those of `generate`.
        """
        settings = check_settings(self.config.sampling, cfg_scale, temperature, top_p, cfg_filter_top_k)
        clips = self._clips(text, audio_prompt, max_tokens, seed, truncate)
        results = self._run(clips, settings, lambda codes: codes, batch_size, on_clip, progress)
        return results[0] if isinstance(text, str) else results

    def stream(
        self,
        text: str,
        *,
        audio_prompt: AudioPrompt | None = None,
        max_tokens: int | None = None,
        cfg_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        cfg_filter_top_k: int | None = None,
        seed: Seed | None = None,
        truncate: bool = False,
        first_frames: int = FIRST_FRAMES,
        max_frames: int = dac.WINDOW_FRAMES,
    ) -> Iterator[np.ndarray]:
        """Speaks a script and yields its samples as soon as they can exist.

        Joined, they are what `generate` gives for the same seed. A frame can be decoded when its last channel is drawn,
        15 rows behind its first, and with it the ten frames on which it depends. Closing the generator stops the work.

        Args:
            text: one script. It and the other arguments, as far as they are there, are those of `generate`.
            first_frames: size of the first chunk, 86.13 a second; each further one is twice as long as the one before.
            max_frames: where that ends.

        Returns:
            An iterator of float32 arrays [n] at 44.1 kHz.

        Raises:
            DiaError: at once, before the first chunk is asked for.
        """
        codec = self._codec()
        settings = check_settings(self.config.sampling, cfg_scale, temperature, top_p, cfg_filter_top_k)
        if not isinstance(text, str):
            raise SettingError(f"A stream speaks one script, a string, not {type(text).__name__}.")
        for name, value in (("first_frames", first_frames), ("max_frames", max_frames)):
            _check_count(name, value)
        clip = self._clips(text, audio_prompt, max_tokens, seed, truncate)[0]
        assert isinstance(clip, Clip)
        return self._stream(codec, clip, settings, first_frames, max(first_frames, max_frames))

    def _stream(
        self, codec: Codec, clip: Clip, settings: SamplingSettings, size: int, max_frames: int
    ) -> Iterator[np.ndarray]:
        batch = Batch((self.graphdef, self.params, self.config), settings, [clip])
        context = dac.decoder_context(codec.config)
        sent = 0
        while True:
            while not batch.is_done(0) and batch.frames(0) < sent + size + context:
                batch.advance(sent + size + context - batch.frames(0))  # a row is a frame
            codes = batch.codes(0)
            stop = min(sent + size, len(codes))
            if stop == sent:
                return
            yield dac.decode_window(codec.module, codes, sent, stop, config=codec.config, window=size)
            sent, size = stop, min(2 * size, max_frames)

    def warmup(self, text: str = "[S1] Hello. [S2]", *, batch_size: int = 1, max_tokens: int | None = None) -> float:
        """Compiles, and keeps, the programs that scripts of about this length need, so that no later call waits.

        Args:
            text: a script. Their lengths are rounded up to 128, 256, 512 or 1024 bytes, one program each.
            batch_size: of the calls to come. What a refilled and shrinking batch needs is compiled too.
            max_tokens: of the calls to come.

        Returns:
            seconds that it took.
        """
        began = time.monotonic()
        model, settings = (self.graphdef, self.params, self.config), check_settings(self.config.sampling)
        clip = self._clips(text, None, max_tokens, 0, False)[0]
        assert isinstance(clip, Clip)
        last = clip.max_frames + self.config.max_delay
        size = bucket(batch_size, 1, 1 << 30)
        while size:
            Batch(model, settings, [clip] * size).compile(last)
            size //= 2
        window = FIRST_FRAMES
        while self.codec is not None and window <= dac.WINDOW_FRAMES:
            codes = np.zeros((window, self.config.decoder.num_channels), np.int32)
            dac.decode_window(self.codec.module, codes, 0, window, config=self.codec.config, window=window)
            window *= 2
        return time.monotonic() - began

    def _run(
        self,
        clips: list[Clip | DiaError],
        settings: SamplingSettings,
        finish: Callable[[np.ndarray], np.ndarray],
        batch_size: int,
        on_clip: Callable[[int, np.ndarray], None] | None,
        progress: bool,
    ) -> list[np.ndarray]:
        _check_count("batch_size", batch_size)
        results: list[Any] = [None] * len(clips)
        errors = {i: clip for i, clip in enumerate(clips) if isinstance(clip, DiaError)}
        good = [clip for clip in clips if isinstance(clip, Clip)]
        frame_rate = self.codec.config.frame_rate if self.codec else SAMPLE_RATE / DacConfig().hop
        shape = "{desc}{n:.1f} s of audio [{elapsed}{postfix}]"
        model = (self.graphdef, self.params, self.config)
        frames, began, first = 0, 0.0, 0.0
        try:
            with tqdm(desc="preparing, compiling if new", disable=not progress, bar_format=shape) as bar:
                for ended, live_frames in run(model, settings, good, batch_size=batch_size) if good else ():
                    for clip, codes in ended:
                        results[clip.number] = finish(codes)
                        frames += len(codes)
                        if on_clip is not None:
                            on_clip(clip.number, results[clip.number])
                    seconds = (frames + live_frames) / frame_rate
                    if began:  # the first call may have compiled, so it does not count as speed
                        rate = (seconds - first) / (time.monotonic() - began)
                        finished = sum(result is not None for result in results)
                        count = f", {finished} of {len(clips)} clips" if len(clips) > 1 else ""
                        bar.set_postfix_str(f"{rate:.2f} x real time{count}")
                    else:
                        began, first = time.monotonic(), seconds
                        bar.set_description_str("speaking ")
                    bar.update(seconds - bar.n)
        except KeyboardInterrupt:
            raise Interrupted(results) from None
        if errors:
            raise ClipErrors(errors, results)
        return results

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
        return dac.encode_samples(codec.module, samples, config=codec.config)

    def decode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Turns codes, int [frames, C], into float32 samples [frames * 512] at 44.1 kHz."""
        codec = self._codec()
        return dac.decode_codes(codec.module, self._check_codes(codes), config=codec.config)

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
    ) -> list[Clip | DiaError]:
        """What each clip starts from, or what is wrong with it; what is wrong with all of them is raised."""
        if not isinstance(text, (str, list, tuple)):
            raise SettingError(f"A script must be a string, or several a list of them, not {type(text).__name__}.")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise SettingError("There is no script to speak: the list is empty.")
        if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, (int, np.integer))):
            raise SettingError(f"max_tokens is {max_tokens!r}; it must be a whole number of frames, or None.")
        keys = _keys(seed, len(texts))

        prompts = list(audio_prompt) if isinstance(audio_prompt, list) else [audio_prompt] * len(texts)
        if len(prompts) != len(texts):
            raise SettingError(
                f"There are {len(texts)} scripts but {len(prompts)} audio prompts; give one each, or None."
            )
        shared = None if isinstance(audio_prompt, list) else self._prompt_codes(audio_prompt)
        clips: list[Clip | DiaError] = []
        for number, (script, prompt, key) in enumerate(zip(texts, prompts, keys, strict=True)):
            try:
                codes = self._prompt_codes(prompt) if shared is None else shared
                clips.append(self._clip(number, script, codes, max_tokens, key, truncate))
            except DiaError as error:
                if isinstance(text, str):
                    raise
                clips.append(error)
        return clips

    def _clip(
        self, number: int, script: str, prompt: np.ndarray, max_tokens: int | None, key: jax.Array, truncate: bool
    ) -> Clip:
        encoder = self.config.encoder
        text = encode_text(script, max_length=encoder.max_length, vocab_size=encoder.vocab_size, truncate=truncate)
        room = self._room(len(prompt))
        frames = room if max_tokens is None else int(max_tokens)
        if not 1 <= frames <= room:
            prompt_words = f" beside a prompt of {len(prompt)}" if len(prompt) else ""
            raise SettingError(
                f"max_tokens is {frames}; the model's {self.config.decoder.max_length} rows leave room for 1 to "
                f"{room} new frames{prompt_words}."
            )
        return Clip(text=text, prompt=prompt, max_frames=frames, key=key, number=number)


def check_settings(
    defaults: SamplingSettings,
    cfg_scale: Any = None,
    temperature: Any = None,
    top_p: Any = None,
    cfg_filter_top_k: Any = None,
) -> SamplingSettings:
    """Checks how tokens are to be drawn, as far as that can be done without a model; None takes the default.

    Raises:
        SettingError: a setting is no number or outside its range.
    """
    given = {"cfg_scale": cfg_scale, "temperature": temperature, "top_p": top_p, "cfg_filter_top_k": cfg_filter_top_k}
    settings = dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})
    if problem := settings.problem():
        raise SettingError(f"{problem}.")
    # Traced, so their types must not change from call to call.
    scale, heat, mass = map(np.float32, (settings.cfg_scale, settings.temperature, settings.top_p))
    return SamplingSettings(scale, heat, mass, np.int32(settings.cfg_filter_top_k))


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise SettingError(f"{name} is {value!r}; it must be a whole number from 1 up.")


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
