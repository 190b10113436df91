"""Dia in JAX: scripts with two speakers in, recordings out."""

from dia_jax.alignment import Alignment
from dia_jax.audio import AudioError
from dia_jax.checkpoint import CheckpointError, convert, load_params, open_checkpoint, save_params
from dia_jax.codec import Codec
from dia_jax.config import ConfigError, DacConfig, DecoderConfig, DiaConfig, DiaError, EncoderConfig, SamplingSettings
from dia_jax.dac import Dac
from dia_jax.devices import AcceleratorWarning
from dia_jax.engine import Engine
from dia_jax.hub import HubError
from dia_jax.job import Job
from dia_jax.loop import DecodeError
from dia_jax.mesh import MeshError
from dia_jax.model import DiaModel
from dia_jax.pipeline import ClipErrors, Dia, Interrupted
from dia_jax.requests import SettingError
from dia_jax.text import NONVERBAL_TAGS, TextError
from dia_jax.voice import Voice, VoiceError, load_voices

__version__ = "0.1.0"

__all__ = [
    "NONVERBAL_TAGS",
    "AcceleratorWarning",
    "Alignment",
    "AudioError",
    "CheckpointError",
    "ClipErrors",
    "Codec",
    "ConfigError",
    "Dac",
    "DacConfig",
    "DecodeError",
    "DecoderConfig",
    "Dia",
    "DiaConfig",
    "DiaError",
    "DiaModel",
    "EncoderConfig",
    "Engine",
    "HubError",
    "Interrupted",
    "Job",
    "MeshError",
    "SamplingSettings",
    "SettingError",
    "TextError",
    "Voice",
    "VoiceError",
    "convert",
    "load_params",
    "load_voices",
    "open_checkpoint",
    "save_params",
]
