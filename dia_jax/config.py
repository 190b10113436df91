"""What a Dia model and a DAC codec are made of: sizes, token ids, delays, and the behaviour that the weights expect.

Knows the JSON schemas in which these facts travel (Dia v0.1, Dia 0626, transformers 5, DAC in transformers, DAC in
descript's metadata) and turns each into one frozen, hashable dataclass. Knows nothing of weights, files' places or JAX.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

Variant = Literal["0626", "v0.1"]
"""Which behaviour the weights expect; see `DiaConfig.variant`."""


class DiaError(ValueError):
    """Something handed in that cannot be used. Its message is for the user: the value, the limit and the remedy."""


class ConfigError(DiaError):
    """A config that cannot be read as Dia or DAC; the message says which value and what would do."""


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
                return f"{name} is {value!r}; it must be {wanted}"
        return None


@dataclasses.dataclass(frozen=True)
class DiaConfig:
    """Everything about a Dia checkpoint except its weights.

    Attributes:
        encoder: sizes of the text encoder.
        decoder: sizes of the audio decoder.
        delay_pattern: rows by which each channel is delayed, one a channel.
        eos_token_id: ends a clip; the ids below it are codes, so it is also the codec's codebook size.
        pad_token_id: fills a channel behind its end.
        bos_token_id: fills a channel before its first code.
        variant: "0626" (no RoPE in cross-attention; samples the conditional logits on the top-k set of the guided
            ones) or "v0.1" (RoPE in cross-attention; samples the guided logits, with the EOS logit times 0.8). The
            tensors of the two have the same names and shapes, so nothing but this field tells them apart.
        sampling: how tokens are drawn where the caller does not say.
    """

    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    delay_pattern: tuple[int, ...] = (0, 8, 9, 10, 11, 12, 13, 14, 15)
    eos_token_id: int = 1024
    pad_token_id: int = 1025
    bos_token_id: int = 1026
    variant: Variant = "0626"
    sampling: SamplingSettings = SamplingSettings()

    def __post_init__(self):
        enc, dec = self.encoder, self.decoder
        problems = []
        for part, sizes in (("encoder", enc), ("decoder", dec)):
            for field in dataclasses.fields(sizes):
                value = getattr(sizes, field.name)
                good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
                if field.type is int or field.type == "int":
                    good = good and isinstance(value, int)
                if not good:
                    problems.append(f"{part} {field.name} is {value!r}, not a positive number")
        if not problems:
            for name, heads, kv in (
                ("encoder", enc.num_heads, enc.num_kv_heads),
                ("decoder", dec.num_heads, dec.num_kv_heads),
                ("cross-attention", dec.cross_num_heads, dec.cross_num_kv_heads),
            ):
                if heads % kv:
                    problems.append(f"{name} has {heads} query heads, not a multiple of its {kv} key/value heads")
            for name, head_dim in (
                ("encoder", enc.head_dim),
                ("decoder", dec.head_dim),
                ("cross-attention", dec.cross_head_dim),
            ):
                if head_dim % 2:
                    problems.append(f"{name} head_dim {head_dim} is odd, but RoPE rotates pairs")
            special = (self.eos_token_id, self.pad_token_id, self.bos_token_id)
            if not all(type(number) is int for number in (*special, *self.delay_pattern)):
                raise ConfigError(f"Token ids {special} and delays {self.delay_pattern} must be whole numbers.")
            if len(set(special)) != 3 or max(special) >= dec.vocab_size or min(special) != self.eos_token_id:
                problems.append(
                    f"token ids eos, pad, bos = {special} must differ, lie below vocab_size {dec.vocab_size}, eos first"
                )
            if self.eos_token_id < 1:
                problems.append(f"eos_token_id is {self.eos_token_id}, which leaves no ids for codes")
        if len(self.delay_pattern) != dec.num_channels or min(self.delay_pattern, default=-1) < 0:
            problems.append(f"delay_pattern {self.delay_pattern} must hold {dec.num_channels} numbers, none negative")
        elif self.delay_pattern[0] != 0:
            problems.append(f"delay_pattern {self.delay_pattern} must start with 0: channel 0 tells when a clip ends")
        elif not problems and self.frame_budget < 1:
            problems.append(
                f"max_length {dec.max_length} leaves no room for a frame behind delays up to {self.max_delay}"
            )
        if problem := self.sampling.problem():
            problems.append(f"sampling: {problem}")
        if self.variant not in ("0626", "v0.1"):
            problems.append(f'variant {self.variant!r} is neither "0626" nor "v0.1"')
        if problems:
            raise ConfigError("This is not a usable Dia config: " + "; ".join(problems) + ".")

    @property
    def max_delay(self) -> int:
        """Rows between a frame's first and last channel."""
        return max(self.delay_pattern)

    @property
    def frame_budget(self) -> int:
        """Frames that fit into the decoder's rows, voice prompt and new ones together (row 0 is BOS)."""
        return self.decoder.max_length - self.max_delay - 1

    @classmethod
    def from_json(cls, data: Any, *, variant: Variant | None = None) -> "DiaConfig":
        """Reads a `config.json` of any of the three schemas.

        Args:
            data: the parsed JSON.
            variant: overrides the behaviour that the schema implies (nested `model`/`data` is v0.1, flat is 0626):
                needed for v0.1 weights that were republished under the newer schema.

        Raises:
            ConfigError: a key is missing or its value is unusable.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"config.json holds {type(data).__name__}, not an object.")
        try:
            if "model" in data and "data" in data:
                config = _from_nested(data)
            elif "encoder_config" in data and "decoder_config" in data:
                config = _from_flat(data)
            else:
                raise ConfigError(
                    "config.json has neither `model` and `data` (Dia v0.1) nor `encoder_config` and `decoder_config` "
                    f"(Dia 0626), but these keys: {', '.join(sorted(map(str, data))) or 'none'}."
                )
            config = dataclasses.replace(config, sampling=SamplingSettings(**data.get("sampling", {})))
        except KeyError as error:
            raise ConfigError(f"config.json lacks the key {error}.") from None
        except ConfigError:
            raise
        except (TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"config.json has a value of the wrong kind: {error}.") from None
        return dataclasses.replace(config, variant=variant) if variant else config

    def to_json(self) -> dict[str, Any]:
        """The flat schema of 0626, readable by `transformers` too; it ignores the extra `variant` and `sampling`."""
        enc, dec = self.encoder, self.decoder

        def part(sizes: EncoderConfig | DecoderConfig, model_type: str) -> dict[str, Any]:
            return {
                "model_type": model_type,
                "hidden_size": sizes.hidden_size,
                "intermediate_size": sizes.mlp_size,
                "num_hidden_layers": sizes.num_layers,
                "num_attention_heads": sizes.num_heads,
                "num_key_value_heads": sizes.num_kv_heads,
                "head_dim": sizes.head_dim,
                "hidden_act": "silu",
                "max_position_embeddings": sizes.max_length,
                "norm_eps": sizes.norm_eps,
                "rope_theta": sizes.rope_theta,
                "rope_scaling": None,
                "vocab_size": sizes.vocab_size,
                "initializer_range": 0.02,
            }

        return {
            "architectures": ["DiaForConditionalGeneration"],
            "model_type": "dia",
            "is_encoder_decoder": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "delay_pattern": list(self.delay_pattern),
            "encoder_config": part(enc, "dia_encoder"),
            "decoder_config": part(dec, "dia_decoder")
            | {
                "num_channels": dec.num_channels,
                "cross_hidden_size": enc.hidden_size,
                "cross_num_attention_heads": dec.cross_num_heads,
                "cross_num_key_value_heads": dec.cross_num_kv_heads,
                "cross_head_dim": dec.cross_head_dim,
                "bos_token_id": self.bos_token_id,
                "eos_token_id": self.eos_token_id,
                "pad_token_id": self.pad_token_id,
            },
            "variant": self.variant,
            "sampling": dataclasses.asdict(self.sampling),
        }

    def to_generation_json(self) -> dict[str, Any]:
        """`generation_config.json`: `sampling` in the words of `transformers`, which else does not guide at all."""
        return {
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "max_length": self.decoder.max_length,
            "guidance_scale": self.sampling.cfg_scale,
            "top_k": self.sampling.cfg_filter_top_k,
        } | (
            {"do_sample": True, "temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
            if self.sampling.temperature
            else {"do_sample": False}
        )

    def to_nested_json(self) -> dict[str, Any]:
        """The nested schema of Dia v0.1.

        Raises:
            ConfigError: the config holds what that schema has no place for.
        """
        enc, dec = self.encoder, self.decoder
        if enc.num_kv_heads != enc.num_heads or dec.cross_num_kv_heads != dec.cross_num_heads:
            raise ConfigError("The v0.1 config schema has no grouped key/value heads in encoder or cross-attention.")
        if (enc.rope_theta, enc.norm_eps) != (dec.rope_theta, dec.norm_eps):
            raise ConfigError("The v0.1 config schema has one rope_theta and one norm_eps for encoder and decoder.")
        if enc.max_length % 128 or dec.max_length % 128:
            raise ConfigError(
                f"The v0.1 config schema rounds lengths up to multiples of 128; {enc.max_length} and {dec.max_length} "
                "would change."
            )
        return {
            "version": "1.0",
            "sampling": dataclasses.asdict(self.sampling),
            "model": {
                "encoder": {
                    "n_layer": enc.num_layers,
                    "n_embd": enc.hidden_size,
                    "n_hidden": enc.mlp_size,
                    "n_head": enc.num_heads,
                    "head_dim": enc.head_dim,
                },
                "decoder": {
                    "n_layer": dec.num_layers,
                    "n_embd": dec.hidden_size,
                    "n_hidden": dec.mlp_size,
                    "gqa_query_heads": dec.num_heads,
                    "kv_heads": dec.num_kv_heads,
                    "gqa_head_dim": dec.head_dim,
                    "cross_query_heads": dec.cross_num_heads,
                    "cross_head_dim": dec.cross_head_dim,
                },
                "src_vocab_size": enc.vocab_size,
                "tgt_vocab_size": dec.vocab_size,
                "dropout": 0.0,
                "normalization_layer_epsilon": dec.norm_eps,
                "weight_dtype": "float32",
                "rope_min_timescale": 1,
                "rope_max_timescale": int(dec.rope_theta) if dec.rope_theta == int(dec.rope_theta) else dec.rope_theta,
            },
            "data": {
                "text_length": enc.max_length,
                "audio_length": dec.max_length,
                "channels": dec.num_channels,
                "text_pad_value": 0,
                "audio_eos_value": self.eos_token_id,
                "audio_pad_value": self.pad_token_id,
                "audio_bos_value": self.bos_token_id,
                "delay_pattern": list(self.delay_pattern),
            },
        }


def _from_nested(data: dict[str, Any]) -> DiaConfig:
    model, task = data["model"], data["data"]
    enc, dec = model["encoder"], model["decoder"]
    if model.get("rope_min_timescale", 1) != 1:
        raise ConfigError(f"rope_min_timescale is {model['rope_min_timescale']!r}; only 1 is known to exist.")
    if task.get("text_pad_value", 0) != 0:
        raise ConfigError(f"text_pad_value is {task['text_pad_value']!r}; only 0 is known to exist.")
    eps, theta = model.get("normalization_layer_epsilon", 1e-5), model.get("rope_max_timescale", 10_000)
    return DiaConfig(
        encoder=EncoderConfig(
            num_layers=enc["n_layer"],
            hidden_size=enc["n_embd"],
            mlp_size=enc["n_hidden"],
            num_heads=enc["n_head"],
            num_kv_heads=enc["n_head"],
            head_dim=enc["head_dim"],
            vocab_size=model.get("src_vocab_size", 128),
            max_length=_round_up(task["text_length"], 128),
            norm_eps=eps,
            rope_theta=float(theta),
        ),
        decoder=DecoderConfig(
            num_layers=dec["n_layer"],
            hidden_size=dec["n_embd"],
            mlp_size=dec["n_hidden"],
            num_heads=dec["gqa_query_heads"],
            num_kv_heads=dec["kv_heads"],
            head_dim=dec["gqa_head_dim"],
            cross_num_heads=dec["cross_query_heads"],
            cross_num_kv_heads=dec["cross_query_heads"],
            cross_head_dim=dec["cross_head_dim"],
            vocab_size=model.get("tgt_vocab_size", 1028),
            num_channels=task.get("channels", 9),
            max_length=_round_up(task["audio_length"], 128),
            norm_eps=eps,
            rope_theta=float(theta),
        ),
        delay_pattern=tuple(task.get("delay_pattern", DiaConfig.delay_pattern)),
        eos_token_id=task.get("audio_eos_value", 1024),
        pad_token_id=task.get("audio_pad_value", 1025),
        bos_token_id=task.get("audio_bos_value", 1026),
        variant="v0.1",
    )


def _from_flat(data: dict[str, Any]) -> DiaConfig:
    enc, dec = data["encoder_config"], data["decoder_config"]

    def common(part: dict[str, Any]) -> dict[str, Any]:
        rope = part.get("rope_parameters") or part.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise ConfigError(f"rope_type {rope['rope_type']!r} is not Dia's; only plain RoPE is.")
        if part.get("hidden_act", "silu") != "silu":
            raise ConfigError(f"hidden_act {part['hidden_act']!r} is not Dia's; only silu is.")
        return {
            "num_layers": part["num_hidden_layers"],
            "hidden_size": part["hidden_size"],
            "mlp_size": part["intermediate_size"],
            "num_heads": part["num_attention_heads"],
            "num_kv_heads": part.get("num_key_value_heads") or part["num_attention_heads"],
            "head_dim": part.get("head_dim") or part["hidden_size"] // part["num_attention_heads"],
            "vocab_size": part["vocab_size"],
            "max_length": part["max_position_embeddings"],
            "norm_eps": part.get("norm_eps", 1e-5),
            "rope_theta": float(rope.get("rope_theta") or part.get("rope_theta") or 10_000),
        }

    def token(name: str, default: int) -> int:
        # transformers 5 keeps the ids in the decoder's part and leaves the top-level ones null.
        return next((i for i in (data.get(name), dec.get(name)) if i is not None), default)

    if dec.get("cross_hidden_size", enc["hidden_size"]) != enc["hidden_size"]:
        raise ConfigError(
            f"cross_hidden_size {dec['cross_hidden_size']} is not the encoder's hidden_size {enc['hidden_size']}."
        )
    return DiaConfig(
        encoder=EncoderConfig(**common(enc)),
        decoder=DecoderConfig(
            **common(dec),
            cross_num_heads=dec["cross_num_attention_heads"],
            cross_num_kv_heads=dec.get("cross_num_key_value_heads") or dec["cross_num_attention_heads"],
            cross_head_dim=dec["cross_head_dim"],
            num_channels=dec["num_channels"],
        ),
        delay_pattern=tuple(data.get("delay_pattern") or DiaConfig.delay_pattern),
        eos_token_id=token("eos_token_id", 1024),
        pad_token_id=token("pad_token_id", 1025),
        bos_token_id=token("bos_token_id", 1026),
        variant=data.get("variant", "0626"),
    )


@dataclasses.dataclass(frozen=True)
class DacConfig:
    """Sizes of a Descript Audio Codec. Defaults are the 44.1 kHz, 8 kbps model that Dia uses.

    Attributes:
        strides: downsampling of the encoder's blocks; the decoder's are the same, last first.
        encoder_size: channels behind the encoder's first convolution; each block doubles them.
        decoder_size: channels behind the decoder's first convolution; each block halves them.
    """

    strides: tuple[int, ...] = (2, 4, 8, 8)
    encoder_size: int = 64
    decoder_size: int = 1536
    num_codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8
    sample_rate: int = 44_100

    def __post_init__(self):
        values = [*self.strides, *(getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "strides")]
        if not self.strides or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
            raise ConfigError(f"This is not a usable DAC config, its sizes must be positive integers: {self}.")
        if any(stride % 2 for stride in self.strides):
            raise ConfigError(f"DAC strides {self.strides} hold an odd one; a frame would not be a whole hop long.")
        if self.decoder_size % 2 ** len(self.strides):
            raise ConfigError(f"DAC decoder_size {self.decoder_size} cannot be halved {len(self.strides)} times.")

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

    @classmethod
    def from_json(cls, data: Any) -> "DacConfig":
        """Reads the `config.json` of a transformers DAC, or the `kwargs` of descript's metadata.

        Raises:
            ConfigError: a key is missing or its value is unusable.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"The DAC config is a {type(data).__name__}, not an object.")
        try:
            if "encoder_hidden_size" in data:
                names = ("downsampling_ratios", "encoder_hidden_size", "decoder_hidden_size", "sampling_rate")
                latent = data.get("hidden_size")
            else:
                names = ("encoder_rates", "encoder_dim", "decoder_dim", "sample_rate")
                latent = data.get("latent_dim")
            strides, encoder_size, decoder_size, rate = (data[name] for name in names)
            up = tuple(data.get("upsampling_ratios") or data.get("decoder_rates") or tuple(strides)[::-1])
            codebooks = data["n_codebooks"]
            config = cls(
                strides=tuple(strides),
                encoder_size=encoder_size,
                decoder_size=decoder_size,
                num_codebooks=codebooks,
                codebook_size=data["codebook_size"],
                codebook_dim=data["codebook_dim"],
                sample_rate=rate,
            )
        except KeyError as error:
            raise ConfigError(f"The DAC config lacks the key {error}.") from None
        except TypeError as error:
            raise ConfigError(f"The DAC config has a value of the wrong kind: {error}.") from None
        if up != config.strides[::-1]:
            raise ConfigError(f"DAC decoder strides {up} are not the encoder's {config.strides} reversed.")
        if latent is not None and latent != config.latent_size:
            raise ConfigError(
                f"DAC latent size {latent} is not encoder_size doubled by each block ({config.latent_size})."
            )
        return config

    def to_json(self) -> dict[str, Any]:
        """The schema of `descript/dac_44khz`, readable by `transformers`."""
        return {
            "architectures": ["DacModel"],
            "model_type": "dac",
            "downsampling_ratios": list(self.strides),
            "upsampling_ratios": list(self.strides[::-1]),
            "encoder_hidden_size": self.encoder_size,
            "decoder_hidden_size": self.decoder_size,
            "hidden_size": self.latent_size,
            "hop_length": self.hop,
            "n_codebooks": self.num_codebooks,
            "codebook_size": self.codebook_size,
            "codebook_dim": self.codebook_dim,
            "sampling_rate": self.sample_rate,
        }

    def to_kwargs(self) -> dict[str, Any]:
        """The `metadata["kwargs"]` of descript's `weights.pth`."""
        return {
            "encoder_dim": self.encoder_size,
            "encoder_rates": list(self.strides),
            "latent_dim": None,
            "decoder_dim": self.decoder_size,
            "decoder_rates": list(self.strides[::-1]),
            "n_codebooks": self.num_codebooks,
            "codebook_size": self.codebook_size,
            "codebook_dim": self.codebook_dim,
            "quantizer_dropout": 0.0,
            "sample_rate": self.sample_rate,
        }


def read_json(path: Any) -> Any:
    """Parses a JSON file.

    Raises:
        ConfigError: the file is not JSON, or cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {path} as JSON: {error}.") from None


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
