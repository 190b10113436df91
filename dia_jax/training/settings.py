"""Settings of training runs: each is declared, documented and checked here, and nowhere else.

Knows which settings may change when a run is resumed. Imports no JAX, so that a command line can be built from these
classes; knows nothing of how a setting takes effect.
"""

import dataclasses
import math
from typing import Any

from dia_jax.config import ConfigError, DiaError

COMPUTE_DTYPES = ("float32", "bfloat16")
"""Dtypes in which a loss and its gradients can be computed."""

RESUMABLE = frozenset({"steps", "log_every", "save_every", "sample_every", "keep", "fsdp"})
"""Settings that may change when a run is resumed. The learning rate's cosine then ends at the new number of steps."""


class TrainingError(DiaError):
    """A run that cannot start or resume; the message says why and what to do."""


class DataError(DiaError):
    """Training data that cannot be read or written; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """How clips become batches.

    Raises:
        DataError: a value is out of range.
    """

    positions: int = 8192
    """Size of a batch in positions of the delayed grid, padding included: the number of clips times the length to which
    they are padded comes close to it. A second of audio has 86 positions."""
    text_dropout: float = 0.15
    """Probability that a clip's script is hidden, which trains the unconditional branch of guidance."""
    prompt_probability: float = 0.0
    """Probability that the beginning of a clip, 10 to 50 % of it, is given as a voice prompt and left out of the
    loss."""
    history_dropout: float = 0.0
    """Mean share of the previous positions that is hidden from the decoder, in spans of `batches.HISTORY_SPAN`; the
    share of a clip is uniform between 0 and twice this. Most of a position can be predicted from the positions before
    it; where these are hidden, the model has to read the script. A small model that starts from random weights does not
    learn to read without it; a pretrained one needs 0."""

    def __post_init__(self):
        if self.positions < 1:
            raise DataError(f"positions is {self.positions}; it must be at least 1.")
        for name in ("text_dropout", "prompt_probability", "history_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must lie in 0 .. 1.")


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Weights of the loss's parts.

    Raises:
        ConfigError: a value is out of range.
    """

    first_channel_weight: float = 4.0
    """Weight of channel 0, against 1 for each other channel. Channel 0 is sampled first, holds most of the sound, and
    the other channels follow it, so its errors are the audible ones. 1 gives the loss of `transformers`."""
    alignment_weight: float = 0.0
    """Weight of the alignment loss: the negative logarithm of the attention that the first head of each alignment layer
    gives to the bytes around the one being spoken. It teaches a small model early where to read. Only clips whose
    byte times are known take part."""
    alignment_layers: tuple[int, ...] = ()
    """Decoder layers of the alignment loss, counted from 0."""
    alignment_width: int = 1
    """Bytes on either side of the spoken one that count as around it."""
    remat: bool = True
    """Recompute each layer in the backward pass instead of storing its activations: less memory, more time."""

    def __post_init__(self):
        if not (math.isfinite(self.first_channel_weight) and self.first_channel_weight > 0):
            raise ConfigError(f"first_channel_weight is {self.first_channel_weight}; it must be a number above 0.")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """A run that trains Dia. It can be resumed only with equal settings, except `RESUMABLE` and `loss.remat`.

    Raises:
        TrainingError: a value is out of range.
    """

    steps: int = 10_000
    """Updates of the weights in total."""
    learning_rate: float = 1e-4
    """Peak learning rate, reached after `warmup_steps`; a cosine then decays it to a tenth."""
    warmup_steps: int = 500
    """Updates of linear warm-up."""
    weight_decay: float = 0.01
    """Weight decay (AdamW) of kernels and embeddings; norms have none."""
    clip_norm: float = 1.0
    """Global norm to which larger gradients are scaled down."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one update."""
    dtype: str = "bfloat16"
    """Compute dtype, float32 or bfloat16. The trained weights and the optimizer's state are float32."""
    lora_rank: int = 0
    """Rank of the adapters to train in place of the weights; 0 trains all weights."""
    lora_alpha: float = 16.0
    """Numerator of an adapter's gain, lora_alpha / lora_rank."""
    ema_decay: float = 0.0
    """Decay of a running average of the weights, which is then saved as the model; 0 for no average."""
    fsdp: int = 1
    """Devices over which the weights and the optimizer's state are sharded; it must divide the number of devices."""
    alignment_steps: int = 0
    """Updates over which the weight of the alignment loss falls linearly to 0."""
    seed: int = 0
    """Seed of the initial weights and of the batches."""
    batch: BatchSettings = dataclasses.field(default_factory=BatchSettings)
    """How clips become batches."""
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    """Weights of the loss's parts."""
    log_every: int = 20
    """Updates between two lines of metrics."""
    save_every: int = 500
    """Updates between two checkpoints."""
    sample_every: int = 0
    """Updates between two sets of samples; 0 for none."""
    keep: int = 2
    """Number of latest checkpoints to keep."""

    def __post_init__(self):
        _check_positive(self, "steps", "accumulate", "fsdp", "log_every", "save_every", "keep")
        for name in ("warmup_steps", "lora_rank", "alignment_steps", "sample_every", "weight_decay"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if not 0 <= self.ema_decay < 1:
            raise TrainingError(f"ema_decay is {self.ema_decay}; it must be at least 0 and less than 1.")
        _check_rate_and_seed(self.learning_rate, self.seed)
        if self.dtype == "float16":
            # Gradients of float16 activations are float16, whose smallest number is 6e-8.
            raise TrainingError(
                "dtype is 'float16', in which small gradients become 0, for there is no loss scaling; "
                "train in 'bfloat16' or 'float32'."
            )
        if self.dtype not in COMPUTE_DTYPES:
            raise TrainingError(f"dtype is {self.dtype!r}; it must be one of {', '.join(COMPUTE_DTYPES)}.")


@dataclasses.dataclass(frozen=True)
class CodecSettings:
    """A run that trains the codec. It can be resumed only with equal settings, except `RESUMABLE`.

    Raises:
        TrainingError: a value is out of range.
    """

    steps: int = 100_000
    """Updates of the weights in total."""
    learning_rate: float = 1e-4
    """Learning rate of the first update."""
    decay: float = 0.999996
    """Factor of the learning rate from one update to the next."""
    clips: int = 8
    """Excerpts of recordings in a batch."""
    frames: int = 64
    """Frames of each excerpt, 86 a second."""
    mel_weight: float = 15.0
    """Weight of the mel loss."""
    stft_weight: float = 1.0
    """Weight of the STFT loss."""
    codebook_weight: float = 1.0
    """Weight of the codebook loss."""
    commitment_weight: float = 0.25
    """Weight of the commitment loss."""
    quantizer_dropout: float = 0.5
    """Probability that an excerpt uses only the first few codebooks, a random number of them."""
    revive_below: float = 0.01
    """An entry used less than this share of its codebook's mean usage is moved onto a residual of the batch."""
    decoder_only: bool = False
    """Train the decoder alone. The codes do not change, so prepared data stay valid."""
    clip_norm: float = 1000.0
    """Global norm to which larger gradients are scaled down."""
    seed: int = 0
    """Seed of the initial weights and of the batches."""
    log_every: int = 20
    """Updates between two lines of metrics."""
    save_every: int = 500
    """Updates between two checkpoints."""
    keep: int = 2
    """Number of latest checkpoints to keep."""

    def __post_init__(self):
        _check_positive(self, "steps", "clips", "frames", "log_every", "save_every", "keep")
        _check_rate_and_seed(self.learning_rate, self.seed)
        if not 0 <= self.quantizer_dropout <= 1:
            raise TrainingError(f"quantizer_dropout is {self.quantizer_dropout}; it must lie in 0 .. 1.")


def identity(settings: TrainSettings | CodecSettings) -> dict[str, Any]:
    """The settings that must be equal when a run is resumed, by name."""
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name not in RESUMABLE}
    if "loss" in values:
        del values["loss"]["remat"]  # trades memory for time and changes nothing else
    return values


def _check_positive(settings: TrainSettings | CodecSettings, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise TrainingError(f"{name} is {getattr(settings, name)}; it must be at least 1.")


def _check_rate_and_seed(learning_rate: float, seed: int) -> None:
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        raise TrainingError(f"learning_rate is {learning_rate}; it must be a finite number that is not negative.")
    if not 0 <= seed < 2**32:
        raise TrainingError(f"seed is {seed}; it must be a whole number from 0 to {2**32 - 1}.")
