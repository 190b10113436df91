"""What callers hand in -> requests, or an error that says what to change.

Knows scripts, settings, seeds and voice prompts, as a user writes them. Knows the model's limits; runs neither the
model nor the codec.
"""

import dataclasses
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from dia_jax.audio import prepare_audio, read_audio
from dia_jax.config import DacConfig, DiaConfig, DiaError, SamplingSettings, short
from dia_jax.decode import Request
from dia_jax.text import encode_text
from dia_jax.voice import TAGS, Voice, VoiceError, as_voice, voice_prompt

PRNG = "threefry2x32"

AudioPrompt = Any
"""A path; a pair (samples, sample rate), see `audio.prepare_audio`; or codes, an int array [P, C]."""

VoiceLike = Voice | str | os.PathLike | Mapping[str, Voice | str | os.PathLike]
"""A voice or its file; or one for each of the tags "S1" and "S2"."""

Seed = int | jax.Array
"""An int in 0 .. 2**32 - 1, or a scalar key of `jax.random.key`."""


class SettingError(DiaError):
    """A setting outside its range, or a prompt that does not go with the scripts."""


class Options(TypedDict, total=False):
    """What `Dia.generate`, `Dia.generate_codes` and `Dia.stream` all take; described at `Dia.generate`."""

    audio_prompt: AudioPrompt | list[AudioPrompt | None] | None
    voice: VoiceLike | list[VoiceLike | None] | None
    max_tokens: int | None
    cfg_scale: float | None
    temperature: float | None
    top_p: float | None
    cfg_filter_top_k: int | None
    seed: Seed | Sequence[Seed] | None
    truncate: bool


@dataclasses.dataclass(frozen=True)
class Recording:
    """A voice prompt that is still to be encoded: float32 samples [n] at the codec's rate."""

    samples: np.ndarray


@dataclasses.dataclass(frozen=True)
class Draft:
    """A checked request whose voice prompt may still have to be encoded."""

    text: np.ndarray
    prompt: np.ndarray | Recording
    max_frames: int
    key: jax.Array
    settings: SamplingSettings

    def with_codes(self, codes: np.ndarray) -> Request:
        return Request(self.text, codes, self.max_frames, self.key, self.settings)


def draft_requests(
    text: str | Sequence[str],
    config: DiaConfig,
    codec: DacConfig | None,
    *,
    audio_prompt: AudioPrompt | list[AudioPrompt | None] | None = None,
    max_tokens: int | None = None,
    cfg_scale: float | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    cfg_filter_top_k: int | None = None,
    seed: Seed | Sequence[Seed] | None = None,
    truncate: bool = False,
) -> list[Draft | DiaError]:
    """Checks the arguments of `Dia.generate`.

    Args:
        text: a script, or a list of them.
        config: of the model.
        codec: that of the codec; None where there is none, and prompts must be codes.

    Returns:
        For each script what its clip starts from, or what is wrong with it.

    Raises:
        DiaError: something is wrong with all of them, or with the only one.
    """
    settings = check_settings(config.sampling, cfg_scale, temperature, top_p, cfg_filter_top_k)
    if not isinstance(text, (str, list, tuple)):
        raise SettingError(f"A script must be a string, or several a list of them, not {type(text).__name__}.")
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise SettingError("There is no script to speak: the list is empty.")
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, (int, np.integer))):
        raise SettingError(f"max_tokens is {short(max_tokens)}; it must be a whole number of frames, or None.")
    keys = _keys(seed, len(texts))
    prompts = list(audio_prompt) if isinstance(audio_prompt, list) else [audio_prompt] * len(texts)
    if len(prompts) != len(texts):
        raise SettingError(f"There are {len(texts)} scripts but {len(prompts)} audio prompts; give one each, or None.")
    shared = None if isinstance(audio_prompt, list) else _read_prompt(audio_prompt, config, codec)
    # A recording that is named several times is read, and encoded, once.
    seen: dict[str | int, np.ndarray | Recording] = {}
    drafts: list[Draft | DiaError] = []
    for script, prompt, key in zip(texts, prompts, keys, strict=True):
        try:
            name = os.fspath(prompt) if isinstance(prompt, (str, os.PathLike)) else id(prompt)
            if shared is None and name not in seen:
                seen[name] = _read_prompt(prompt, config, codec)
            tokens = encode_text(
                script, max_length=config.encoder.max_length, vocab_size=config.encoder.vocab_size, truncate=truncate
            )
            drafts.append(
                _draft(tokens, seen[name] if shared is None else shared, max_tokens, key, settings, config, codec)
            )
        except DiaError as error:
            if isinstance(text, str):
                raise
            drafts.append(error)
    return drafts


def put_voices_before(
    text: str | Sequence[str], voice: VoiceLike | Sequence[VoiceLike | None], *, codec: str
) -> tuple[str | list[str], list[np.ndarray | None] | np.ndarray]:
    """Turns voices into transcripts before scripts, and into voice prompts.

    Args:
        text: a script, or a list of them.
        voice: for all of them, or a list with one for each. A single voice speaks the script's first tag.
        codec: digest of the model's codec.

    Returns:
        the scripts, and the prompts' codes, to be handed to `draft_requests`.

    Raises:
        VoiceError: a voice cannot be read, or was made with another codec.
        SettingError: there is not one for each script.
    """
    if isinstance(text, str) and not isinstance(voice, list):
        whole, codes = _put_voice_before(text, voice, codec)
        return whole, codes
    texts = [text] if isinstance(text, str) else list(text)
    voices = list(voice) if isinstance(voice, list) else [voice] * len(texts)
    if len(voices) != len(texts):
        raise SettingError(f"There are {len(texts)} scripts but {len(voices)} voices; give one each, or None.")
    both = [(t, None) if v is None else _put_voice_before(t, v, codec) for t, v in zip(texts, voices, strict=True)]
    return [whole for whole, _ in both], [codes for _, codes in both]


def _put_voice_before(text: Any, voice: Any, codec: str) -> tuple[str, np.ndarray]:
    if isinstance(voice, Mapping):
        if not voice or not set(voice) <= set(TAGS):
            raise VoiceError(f"Voices must be given for the tags S1 and S2 or one of them, not for {short([*voice])}.")
        voices = {tag: as_voice(voice[tag]) for tag in TAGS if tag in voice}
    else:
        first = re.match(r"\s*\[(S[12])\]", text) if isinstance(text, str) else None
        voices = {first[1] if first else "S1": as_voice(voice)}
    for each in voices.values():
        check_voice(each, codec=codec)
    before, codes = voice_prompt(voices)
    return f"{before} {text}", codes


def check_voice(voice: Voice, *, codec: str) -> None:
    """Raises VoiceError unless a voice was made with the codec of this digest."""
    if voice.codec != codec:
        raise VoiceError(
            f"The voice {voice.name!r} was made with the codec {voice.codec}, but this model's is {codec}; make it "
            "again from its recording: dia-jax voice"
        )


def _draft(
    tokens: np.ndarray,
    prompt: np.ndarray | Recording,
    max_tokens: int | None,
    key: jax.Array,
    settings: SamplingSettings,
    config: DiaConfig,
    codec: DacConfig | None,
) -> Draft:
    prompt_frames = _count_frames(prompt, codec)
    room = config.frame_budget - prompt_frames
    frames = room if max_tokens is None else int(max_tokens)
    if not 1 <= frames <= room:
        beside = f" beside a prompt of {prompt_frames}" if prompt_frames else ""
        raise SettingError(
            f"max_tokens is {frames}; the model's {config.decoder.max_length} positions leave room for 1 to {room} new "
            f"frames{beside}."
        )
    return Draft(tokens, prompt, frames, key, settings)


def _count_frames(prompt: np.ndarray | Recording, codec: DacConfig | None) -> int:
    if isinstance(prompt, np.ndarray):
        return len(prompt)
    assert codec is not None
    return -(-len(prompt.samples) // codec.hop)


def _read_prompt(prompt: AudioPrompt | None, config: DiaConfig, codec: DacConfig | None) -> np.ndarray | Recording:
    if prompt is None:
        return np.zeros((0, config.decoder.num_channels), np.int32)
    if is_recording(prompt):
        read: np.ndarray | Recording = Recording(read_recording(prompt, codec))
    elif isinstance(prompt, np.ndarray) and prompt.dtype.kind == "f":
        raise SettingError("An audio prompt of samples needs its sample rate: pass the pair (samples, rate).")
    else:
        read = check_codes(prompt, config)
    frames = _count_frames(read, codec)
    if frames >= config.frame_budget:
        raise SettingError(
            f"The audio prompt is {frames} frames long; the model's {config.decoder.max_length} positions hold "
            f"{config.frame_budget} frames with what is to be spoken; use a prompt of 5 to 10 s."
        )
    return read


def is_recording(audio: AudioPrompt) -> bool:
    """Whether an audio prompt is a recording, a path or a pair (samples, rate), and not codes."""
    return isinstance(audio, (str, os.PathLike, tuple))


def read_recording(audio: AudioPrompt, codec: DacConfig | None) -> np.ndarray:
    """A path or a pair (samples, rate) -> float32 samples [n] at the codec's rate.

    Raises:
        AudioError: it cannot be read, or is empty or silent.
        SettingError: it is neither, or there is no codec.
    """
    if codec is None:
        raise SettingError("This needs the codec, but the model was loaded without (load_codec=False).")
    if isinstance(audio, (str, os.PathLike)):
        return read_audio(audio, rate=codec.sample_rate)
    if isinstance(audio, tuple) and len(audio) == 2:
        return prepare_audio(*audio, rate=codec.sample_rate)
    raise SettingError(f"Audio must be a path or a pair (samples, rate), not {type(audio).__name__}.")


def check_codes(codes: Any, config: DiaConfig) -> np.ndarray:
    """Anything like an array of codes -> int32 [frames, C].

    Raises:
        SettingError: it is no integer array of that shape, or holds ids that are no codes.
    """
    channels, size = config.decoder.num_channels, config.eos_token_id
    try:
        array = np.asarray(codes)
    except ValueError:
        raise SettingError(f"Codes must be an integer array [frames, {channels}], not a ragged list.") from None
    if array.ndim != 2 or array.shape[1] != channels or array.dtype.kind not in "iu":
        raise SettingError(f"Codes must be an integer array [frames, {channels}], not {array.dtype} {array.shape}.")
    if array.size and not (array.min() >= 0 and array.max() < size):
        raise SettingError(f"Codes must lie in 0 .. {size - 1}; these go from {array.min()} to {array.max()}.")
    return array.astype(np.int32)


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
    return settings


def check_count(name: str, value: Any) -> int:
    """Raises SettingError unless a value is a whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise SettingError(f"{name} is {short(value)}; it must be a whole number from 1 up.")
    return int(value)


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
        raise SettingError(
            f"seed is {short(value)}; it must be a whole number from 0 to {2**32 - 1}, or a jax.random.key."
        )
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
