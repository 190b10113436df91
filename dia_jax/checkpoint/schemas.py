"""The JSON schemas of configs: Dia v0.1, Dia 0626, transformers 5, DAC in transformers, DAC in descript's metadata.

Knows the keys of each schema and turns them into `DiaConfig` and `DacConfig` and back. Which sizes are usable is the
business of `config`; this module knows no weights and no files.
"""

import dataclasses
from typing import Any

from dia_jax.config import (
    ConfigError,
    DacConfig,
    DecoderConfig,
    DiaConfig,
    EncoderConfig,
    SamplingSettings,
    SpeechSettings,
    Variant,
    one_line,
    short,
)

FLAT_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "mlp_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
}
"""What encoder and decoder have in common: the field of our config and the key in the flat schema."""

DAC_KEYS = {
    "strides": "downsampling_ratios",
    "encoder_size": "encoder_hidden_size",
    "decoder_size": "decoder_hidden_size",
    "num_codebooks": "n_codebooks",
    "codebook_size": "codebook_size",
    "codebook_dim": "codebook_dim",
    "sample_rate": "sampling_rate",
}
"""The field of `DacConfig` and the key in the schema of transformers."""

DESCRIPT_KEYS = DAC_KEYS | {
    "strides": "encoder_rates",
    "encoder_size": "encoder_dim",
    "decoder_size": "decoder_dim",
    "sample_rate": "sample_rate",
}
"""The same for the `kwargs` in descript's metadata."""


# --- Dia -------------------------------------------------------------------------------------------------------------


def dia_from_json(data: Any, *, variant: Variant | None = None) -> DiaConfig:
    """Reads a `config.json` of any of Dia's three schemas.

    Args:
        data: the parsed JSON.
        variant: overrides the behaviour that the schema implies (nested `model` and `data` is v0.1, flat is 0626), for
            v0.1 weights that were republished under the newer schema.

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
                f"(Dia 0626), but these keys: {short(sorted(map(str, data))) if data else 'none'}."
            )
        speech = {name: _as_tuple(value) for name, value in data.get("speech", {}).items()}
        config = dataclasses.replace(
            config, sampling=SamplingSettings(**data.get("sampling", {})), speech=SpeechSettings(**speech)
        )
    except KeyError as error:
        raise ConfigError(f"config.json lacks the key {error}.") from None
    except ConfigError:
        raise
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"config.json has a value of the wrong kind: {one_line(error)}.") from None
    return dataclasses.replace(config, variant=variant) if variant else config


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def dia_to_json(config: DiaConfig) -> dict[str, Any]:
    """The flat schema of 0626. `transformers` reads it too, and ignores the extra `variant`, `sampling` and
    `speech`."""
    enc, dec = config.encoder, config.decoder
    special = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }

    def part(sizes: EncoderConfig | DecoderConfig, model_type: str) -> dict[str, Any]:
        return {
            "model_type": model_type,
            **{key: getattr(sizes, field) for field, key in FLAT_KEYS.items()},
            "hidden_act": "silu",
            "rope_scaling": None,
            "initializer_range": 0.02,
        }

    cross = {
        "num_channels": dec.num_channels,
        "cross_hidden_size": enc.hidden_size,
        "cross_num_attention_heads": dec.cross_num_heads,
        "cross_num_key_value_heads": dec.cross_num_kv_heads,
        "cross_head_dim": dec.cross_head_dim,
    }
    return {
        "architectures": ["DiaForConditionalGeneration"],
        "model_type": "dia",
        "is_encoder_decoder": True,
        **special,
        "delay_pattern": list(config.delay_pattern),
        "encoder_config": part(enc, "dia_encoder"),
        "decoder_config": part(dec, "dia_decoder") | cross | special,
        "variant": config.variant,
        "sampling": dataclasses.asdict(config.sampling),
        "speech": dataclasses.asdict(config.speech),
    }


def dia_to_generation_json(config: DiaConfig) -> dict[str, Any]:
    """`generation_config.json`: `sampling` under transformers' names; without this file it runs unguided."""
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "max_length": config.decoder.max_length,
        "guidance_scale": config.sampling.cfg_scale,
        "top_k": config.sampling.cfg_filter_top_k,
    } | (
        {"do_sample": True, "temperature": config.sampling.temperature, "top_p": config.sampling.top_p}
        if config.sampling.temperature
        else {"do_sample": False}
    )


def dia_to_nested_json(config: DiaConfig) -> dict[str, Any]:
    """The nested schema of Dia v0.1.

    Raises:
        ConfigError: the config holds what that schema has no place for.
    """
    enc, dec = config.encoder, config.decoder
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
        "sampling": dataclasses.asdict(config.sampling),
        "speech": dataclasses.asdict(config.speech),
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
            "audio_eos_value": config.eos_token_id,
            "audio_pad_value": config.pad_token_id,
            "audio_bos_value": config.bos_token_id,
            "delay_pattern": list(config.delay_pattern),
        },
    }


def _from_nested(data: dict[str, Any]) -> DiaConfig:
    model, task = data["model"], data["data"]
    enc, dec = model["encoder"], model["decoder"]
    if model.get("rope_min_timescale", 1) != 1:
        raise ConfigError(f"rope_min_timescale is {short(model['rope_min_timescale'])}; only 1 is known to exist.")
    if task.get("text_pad_value", 0) != 0:
        raise ConfigError(f"text_pad_value is {short(task['text_pad_value'])}; only 0 is known to exist.")
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
            raise ConfigError(f"rope_type {short(rope['rope_type'])} is not Dia's; only plain RoPE is.")
        if part.get("hidden_act", "silu") != "silu":
            raise ConfigError(f"hidden_act {short(part['hidden_act'])} is not Dia's; only silu is.")
        derived = {
            "num_kv_heads": part.get("num_key_value_heads") or part["num_attention_heads"],
            "head_dim": part.get("head_dim") or part["hidden_size"] // part["num_attention_heads"],
            "norm_eps": part.get("norm_eps", 1e-5),
            "rope_theta": float(rope.get("rope_theta") or part.get("rope_theta") or 10_000),
        }
        return {field: part[key] for field, key in FLAT_KEYS.items() if field not in derived} | derived

    def token(name: str, default: int) -> int:
        # transformers 5 keeps the ids in the decoder's part and leaves the top-level ones null.
        return next((i for i in (data.get(name), dec.get(name)) if i is not None), default)

    if dec.get("cross_hidden_size", enc["hidden_size"]) != enc["hidden_size"]:
        raise ConfigError(
            f"cross_hidden_size {short(dec['cross_hidden_size'])} is not the encoder's hidden_size "
            f"{short(enc['hidden_size'])}."
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


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# --- DAC -------------------------------------------------------------------------------------------------------------


def dac_from_json(data: Any) -> DacConfig:
    """Reads the `config.json` of a transformers DAC, or the `kwargs` of descript's metadata.

    Raises:
        ConfigError: a key is missing or its value is unusable.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"The DAC config is a {type(data).__name__}, not an object.")
    is_descript = "encoder_hidden_size" not in data
    keys = DESCRIPT_KEYS if is_descript else DAC_KEYS
    for key in keys.values():
        if key not in data:
            raise ConfigError(f"The DAC config lacks the key {key!r}.")
    upsampling = "decoder_rates" if is_descript else "upsampling_ratios"
    latent = "latent_dim" if is_descript else "hidden_size"
    # A pickle's kwargs may hold anything, tensors included, whose comparisons are no plain bools.
    for key in (keys["strides"], upsampling):
        if not isinstance(data.get(key, []), (list, tuple, type(None))):
            raise ConfigError(f"The DAC config has a value of the wrong kind: {key} is a {type(data[key]).__name__}.")
    values = {field: data[key] for field, key in keys.items()}
    config = DacConfig(**values | {"strides": tuple(values["strides"] or ())})
    up = tuple(data.get(upsampling) or config.strides[::-1])
    if not all(type(stride) is int for stride in up) or up != config.strides[::-1]:
        raise ConfigError(f"DAC decoder strides {short(up)} are not the encoder's {config.strides} reversed.")
    size = data.get(latent)
    if size is not None and (type(size) is not int or size != config.latent_size):
        raise ConfigError(
            f"DAC latent size {short(size)} is not encoder_size doubled by each block ({config.latent_size})."
        )
    return config


def dac_to_json(config: DacConfig) -> dict[str, Any]:
    """The schema of `descript/dac_44khz`, readable by `transformers`."""
    return {
        "architectures": ["DacModel"],
        "model_type": "dac",
        **{key: getattr(config, field) for field, key in DAC_KEYS.items()},
        "downsampling_ratios": list(config.strides),
        "upsampling_ratios": list(config.strides[::-1]),
        "hidden_size": config.latent_size,
        "hop_length": config.hop,
    }


def dac_to_kwargs(config: DacConfig) -> dict[str, Any]:
    """The `metadata["kwargs"]` of descript's `weights.pth`."""
    return {
        **{key: getattr(config, field) for field, key in DESCRIPT_KEYS.items()},
        "encoder_rates": list(config.strides),
        "decoder_rates": list(config.strides[::-1]),
        "latent_dim": None,
        "quantizer_dropout": 0.0,
    }
