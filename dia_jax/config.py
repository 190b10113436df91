"""What a Dia model and a DAC codec are made of: sizes, token ids, delays, and the behaviour that the weights expect.

Knows which values are usable, and holds them in frozen, hashable dataclasses. Knows no file formats, weights or JAX:
the JSON schemas of configs are in `checkpoint.schemas`.
"""

import dataclasses
import math
import reprlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

Variant = Literal["0626", "v0.1"]
"""Which behaviour the weights expect; see `DiaConfig.variant`."""


class DiaError(ValueError):
    """Something handed in that cannot be used. Its message is for the user: the value, the limit and the remedy."""


class ConfigError(DiaError):
    """A config that cannot be read as Dia or DAC; the message says which value and what would do."""


# Far above any known model. They bound what is built from a config before its sizes are compared with the weights.
LIMITS: dict[str, float] = {
    "num_layers": 1_000,
    "hidden_size": 65_536,
    "mlp_size": 262_144,
    "num_heads": 1_024,
    "num_kv_heads": 1_024,
    "head_dim": 4_096,
    "cross_num_heads": 1_024,
    "cross_num_kv_heads": 1_024,
    "cross_head_dim": 4_096,
    "vocab_size": 65_536,
    "num_channels": 256,
    "max_length": 65_536,
    "norm_eps": 1.0,
    "rope_theta": 1e9,
    "encoder_size": 65_536,
    "decoder_size": 65_536,
    "num_codebooks": 256,
    "codebook_size": 65_536,
    "codebook_dim": 4_096,
    "sample_rate": 1_000_000,
}
DAC_MAX_BLOCKS = 16
DAC_MAX_SIZE = 65_536


def short(value: Any) -> str:
    """The `repr` of a value from outside, in one line, cut to a length that fits into a message."""
    form = reprlib.Repr()
    form.maxlevel, form.maxtuple, form.maxlist, form.maxdict, form.maxstring, form.maxlong = 2, 16, 16, 4, 80, 40
    try:
        return " ".join(form.repr(value).split())
    except ValueError:  # Python does not write integers of more than 4300 digits
        return f"a value of type {type(value).__name__} that is too large to be shown"


def one_line(error: BaseException) -> str:
    """The text of another library's error, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _size_problems(part: str, sizes: Any) -> Iterator[str]:
    """Fields that are no number above 0, or beyond their limit."""
    for field in dataclasses.fields(sizes):
        if (limit := LIMITS.get(field.name)) is None:
            continue
        value, kinds = getattr(sizes, field.name), (int,) if field.type in (int, "int") else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value <= limit:
            wanted = (
                f"a whole number from 1 to {limit:,}" if kinds == (int,) else f"a number above 0, at most {limit:g}"
            )
            yield f"{part} {field.name} is {short(value)}; it must be {wanted}"


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the text encoder. Defaults are Dia-1.6B's."""

    num_layers: int = 12
    hidden_size: int = 1024
    mlp_size: int = 4096
    num_heads: int = 16
    num_kv_heads: int = 16
    head_dim: int = 128
    vocab_size: int = 256
    max_length: int = 1024
    """Text bytes at most."""
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the audio decoder. Defaults are Dia-1.6B's."""

    num_layers: int = 18
    hidden_size: int = 2048
    mlp_size: int = 8192
    num_heads: int = 16
    num_kv_heads: int = 4
    head_dim: int = 128
    cross_num_heads: int = 16
    cross_num_kv_heads: int = 16
    cross_head_dim: int = 128
    vocab_size: int = 1028
    num_channels: int = 9
    max_length: int = 3072
    """Rows of the delayed grid at most, the voice prompt and the delay included."""
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0


Scalar = Any
"""A number; inside of a compiled function a traced one."""


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn; the names and defaults are the reference's.

    Attributes:
        cfg_scale: guided = conditional + cfg_scale * (conditional - unconditional); 0 is no guidance.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: keeps the smallest set whose probability passes this; 1 keeps all.
        cfg_filter_top_k: keeps this many tokens, the best by the guided logits.
    """

    cfg_scale: Scalar = 3.0
    temperature: Scalar = 1.2
    top_p: Scalar = 0.95
    cfg_filter_top_k: Scalar = 45

    def problem(self) -> str | None:
        """What is wrong with the first value that cannot be used; None if all can."""
        ranges: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("cfg_scale", lambda x: 0 <= x <= 1e6, "a number from 0 (no guidance) up"),
            ("temperature", lambda x: x == 0 or 1e-6 <= x <= 1e6, "0 (always the likeliest) or a number above"),
            ("top_p", lambda x: 0 < x <= 1, "a number above 0, at most 1"),
            ("cfg_filter_top_k", lambda x: x >= 1 and x == int(x) and x < 2**24, "a whole number from 1 up"),
        )
        for name, fits, wanted in ranges:
            value = getattr(self, name)
            try:
                if isinstance(value, (bool, str, bytes, complex, np.complexfloating)):
                    raise TypeError
                number = float(value)
                good = math.isfinite(number) and fits(number)
            except (TypeError, ValueError, OverflowError):
                good = False
            if not good:
                return f"{name} is {short(value)}; it must be {wanted}"
        return None


@dataclasses.dataclass(frozen=True)
class SpeechSettings:
    """How a checkpoint wants long scripts to be divided. Defaults are Dia-1.6B's.

    Attributes:
        chunk_seconds: the shortest and the longest clip in which it is steady.
        steady_seconds: the longest clip and voice prompts before it, together.
        closing_tag: end a clip with the other speaker's tag, or its last word may be cut.
        tag_voices: each tag is one voice, whatever the seed, so that none has to be carried from clip to clip.
        alignment_heads: (layer, head) of the cross-attention heads that follow a script as it is said; none if they are
            to be found in each clip.
    """

    chunk_seconds: tuple[float, float] = (10.0, 18.0)
    steady_seconds: float = 30.0
    closing_tag: bool = True
    tag_voices: bool = False
    alignment_heads: tuple[tuple[int, int], ...] = ()

    def problem(self) -> str | None:
        """What is wrong with the first value that cannot be used; None if all can."""
        seconds = self.chunk_seconds
        numbers = isinstance(seconds, tuple) and len(seconds) == 2 and all(type(x) in (int, float) for x in seconds)
        if not numbers or not 0 < seconds[0] <= seconds[1] <= 3600:
            return f"chunk_seconds is {short(seconds)}; it must be two numbers above 0, the shorter one first"
        if type(self.steady_seconds) not in (int, float) or not 0 < self.steady_seconds <= 3600:
            return f"steady_seconds is {short(self.steady_seconds)}; it must be a number above 0"
        for name in ("closing_tag", "tag_voices"):
            if not isinstance(getattr(self, name), bool):
                return f"{name} is {short(getattr(self, name))}; it must be true or false"
        heads = self.alignment_heads
        pairs = isinstance(heads, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in heads)
        if not pairs or not all(type(number) is int and number >= 0 for pair in heads for number in pair):
            return f"alignment_heads is {short(heads)}; it must hold pairs of whole numbers"
        return None


@dataclasses.dataclass(frozen=True)
class DiaConfig:
    """Everything about a Dia checkpoint except its weights.

    Attributes:
        encoder: sizes of the text encoder.
        decoder: sizes of the audio decoder.
        delay_pattern: positions by which each channel is delayed.
        eos_token_id: ends a clip; the ids below it are codes, so it is also the codec's codebook size.
        pad_token_id: fills a channel after its end.
        bos_token_id: fills a channel before its first code.
        variant: "0626" (no RoPE in cross-attention; samples the conditional logits on the top-k set of the guided
            ones) or "v0.1" (RoPE in cross-attention; samples the guided logits, with the EOS logit times 0.8). The
            tensors of the two have the same names and shapes, so only this field distinguishes them.
        sampling: how tokens are drawn where the caller does not say.
        speech: how long scripts are divided.
    """

    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    delay_pattern: tuple[int, ...] = (0, 8, 9, 10, 11, 12, 13, 14, 15)
    eos_token_id: int = 1024
    pad_token_id: int = 1025
    bos_token_id: int = 1026
    variant: Variant = "0626"
    sampling: SamplingSettings = SamplingSettings()
    speech: SpeechSettings = SpeechSettings()

    def __post_init__(self):
        enc, dec = self.encoder, self.decoder
        problems = [*_size_problems("encoder", enc), *_size_problems("decoder", dec)]
        special = (self.eos_token_id, self.pad_token_id, self.bos_token_id)
        if not all(type(number) is int for number in (*special, *self.delay_pattern)):
            problems.append(f"token ids {short(special)} and delays {short(self.delay_pattern)} must be whole numbers")
        if not problems:
            problems += self._contradictions()
        if problem := self.sampling.problem():
            problems.append(f"sampling: {problem}")
        if problem := self.speech.problem():
            problems.append(f"speech: {problem}")
        elif any(layer >= dec.num_layers or head >= dec.cross_num_heads for layer, head in self.speech.alignment_heads):
            problems.append(
                f"speech: alignment_heads is {short(self.speech.alignment_heads)}, but the decoder has "
                f"{short(dec.num_layers)} layers of {short(dec.cross_num_heads)} heads"
            )
        if self.variant not in ("0626", "v0.1"):
            problems.append(f'variant {short(self.variant)} is neither "0626" nor "v0.1"')
        if problems:
            raise ConfigError("This is not a usable Dia config: " + "; ".join(problems) + ".")

    def _contradictions(self) -> Iterator[str]:
        """Values that are usable alone but not together."""
        enc, dec, delays = self.encoder, self.decoder, short(self.delay_pattern)
        special = (self.eos_token_id, self.pad_token_id, self.bos_token_id)
        for name, heads, kv in (
            ("encoder", enc.num_heads, enc.num_kv_heads),
            ("decoder", dec.num_heads, dec.num_kv_heads),
            ("cross-attention", dec.cross_num_heads, dec.cross_num_kv_heads),
        ):
            if heads % kv:
                yield f"{name} has {heads} query heads, not a multiple of its {kv} key/value heads"
        for name, head_dim in (
            ("encoder", enc.head_dim),
            ("decoder", dec.head_dim),
            ("cross-attention", dec.cross_head_dim),
        ):
            if head_dim % 2:
                yield f"{name} head_dim {head_dim} is odd, but RoPE rotates pairs"
        if len(set(special)) != 3 or max(special) >= dec.vocab_size or min(special) != self.eos_token_id:
            yield (
                f"token ids eos, pad, bos = {short(special)} must differ and lie below vocab_size {dec.vocab_size}, "
                "and eos must be the lowest"
            )
        if self.eos_token_id < 1:
            yield f"eos_token_id is {short(self.eos_token_id)}, which leaves no ids for codes"
        if len(self.delay_pattern) != dec.num_channels or min(self.delay_pattern, default=-1) < 0:
            yield f"delay_pattern {delays} must hold {dec.num_channels} numbers, none negative"
        elif self.delay_pattern[0] != 0:
            yield f"delay_pattern {delays} must start with 0, because channel 0 ends a clip"
        elif self.frame_budget < 1:
            yield f"max_length {dec.max_length} leaves no room for a frame with delays up to {short(self.max_delay)}"

    @property
    def max_delay(self) -> int:
        """Rows between a frame's first and last channel."""
        return max(self.delay_pattern)

    @property
    def frame_budget(self) -> int:
        """Frames that fit into the decoder's positions, voice prompt and new ones together (position 0 is BOS)."""
        return self.decoder.max_length - self.max_delay - 1


@dataclasses.dataclass(frozen=True)
class DacConfig:
    """Sizes of a Descript Audio Codec. Defaults are the 44.1 kHz, 8 kbps model that Dia uses.

    Attributes:
        strides: downsampling of the encoder's blocks; the decoder's are the same, last first.
        encoder_size: channels after the encoder's first convolution; each block doubles them.
        decoder_size: channels after the decoder's first convolution; each block halves them.
    """

    strides: tuple[int, ...] = (2, 4, 8, 8)
    encoder_size: int = 64
    decoder_size: int = 1536
    num_codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8
    sample_rate: int = 44_100

    def __post_init__(self):
        problems = list(_size_problems("DAC", self))
        if not 1 <= len(self.strides) <= DAC_MAX_BLOCKS:
            problems.append(f"there are {len(self.strides)} strides; there must be from 1 to {DAC_MAX_BLOCKS}")
        elif not all(type(stride) is int and stride > 0 and stride % 2 == 0 for stride in self.strides):
            # With an odd one, a frame would not be a whole hop long.
            problems.append(f"strides {short(self.strides)} must be even whole numbers above 0")
        elif not problems:
            blocks = len(self.strides)
            if self.decoder_size % 2**blocks:
                problems.append(f"decoder_size {self.decoder_size} cannot be halved {blocks} times")
            for name, value in (("hop", self.hop), ("latent_size", self.latent_size)):
                if value > DAC_MAX_SIZE:
                    problems.append(f"{name} is {short(value)}; it must be at most {DAC_MAX_SIZE:,}")
        if problems:
            raise ConfigError("This is not a usable DAC config: " + "; ".join(problems) + ".")

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.strides)

    @property
    def latent_size(self) -> int:
        """Channels between the encoder, the quantizer and the decoder."""
        return self.encoder_size * 2 ** len(self.strides)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop
