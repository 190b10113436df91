"""Commands that train: prepare, train, train-codec.

Knows options and what is printed; `dia_jax.training` does the work, and is imported only when a command runs.
"""

import dataclasses
from pathlib import Path
from typing import Any

from dia_jax.cli.common import Dtype, Positional, say
from dia_jax.config import DiaError
from dia_jax.hub import resolve


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Turn recordings and transcripts into codes to train on.

    The source is a folder of audio files, each with its transcript beside it (clip.wav, clip.txt), or a JSONL file
    whose lines have "path", "text" and perhaps "voice". Transcripts are scripts: they begin with [S1] or [S2]. A run
    that was interrupted resumes where it stopped. Clips that cannot be used are listed with their reasons in
    refused.jsonl.

    Try:

    dia-jax prepare recordings/ data/

    dia-jax prepare manifest.jsonl data/ --codec my-codec/
    """

    source: Positional[Path]
    """A folder or a JSONL file."""
    target: Positional[Path]
    """The folder for the codes: a new one, or one to resume."""
    codec: str = "descript/dac_44khz"
    """The codec of the model to be trained: a hub repo, or a local directory or file."""
    config: Path | None = None
    """The config.json of the model to be trained, for its limits; Dia-1.6B's by default."""
    workers: int = 4
    """Threads that read and resample ahead of the codec."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> None:
        _needs_train_extra()
        from dia_jax.checkpoint import dia_from_json
        from dia_jax.files import read_json
        from dia_jax.pipeline import open_codec
        from dia_jax.training.prepare import prepare

        config = None if self.config is None else dia_from_json(read_json(self.config))
        codec = open_codec(resolve(self.codec), progress=not self.quiet)
        try:
            summary = prepare(
                self.source, self.target, codec, config=config, workers=self.workers, progress=not self.quiet
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{self.target} can be resumed with the same command") from None
        for source, reason in summary.refused[:10]:
            say(f"refused: {source}: {reason}")
        if len(summary.refused) > 10:
            say(f"... and {len(summary.refused) - 10} more, see {self.target / 'refused.jsonl'}")
        say(
            f"{self.target}: {summary.kept} clips, {summary.seconds / 3600:.2f} h of audio; "
            f"{len(summary.refused)} refused"
        )


@dataclasses.dataclass(frozen=True)
class Train:
    """Train Dia, or an adapter for it, on prepared data.

    It may be killed at any moment: the same command resumes from the last checkpoint. The run's folder has
    metrics.jsonl, loss.png and samples/. At the end it has model/ or adapter/, for --model or --adapter of generate.

    Try:

    dia-jax train run/ data/ --lora-rank 16 --learning-rate 2e-4 --steps 2000

    dia-jax train run/ data/ --base Dia-1.6B-0626/ --fsdp 4 --steps 20000 --validation held-out/

    dia-jax train run/ data/ --config small.json --dtype float32 --learning-rate 1e-3
    """

    folder: Positional[Path]
    """The folder of the run: a new one, or one to resume."""
    data: Positional[Path]
    """The folder that dia-jax prepare wrote."""
    base: str | None = None
    """The checkpoint to start from; by default the hub's Dia-1.6B-0626."""
    config: Path | None = None
    """The config.json of a model to be trained from random weights, instead of --base."""
    steps: int = 10_000
    """Updates of the weights in total."""
    learning_rate: float = 1e-4
    """The peak learning rate; it decays to a tenth along a cosine."""
    warmup_steps: int = 500
    """Updates until the peak learning rate."""
    lora_rank: int = 0
    """Train adapters of this rank (5 MB per rank for Dia-1.6B) and freeze the weights; 0 trains all weights."""
    rows: int = 8192
    """Rows of the grid in a batch, 86 per second of audio: as many as memory allows."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one update."""
    dtype: Dtype = "bfloat16"
    """The dtype of the computation; trained weights are float32."""
    fsdp: int = 1
    """Devices over which the weights are sharded; the batch is sharded over all devices."""
    ema_decay: float = 0.0
    """Save a running average of the weights with this decay, for example 0.999; 0 for none."""
    text_dropout: float = 0.15
    """The probability that a script is hidden, which trains the unconditional branch of guidance."""
    prompt_probability: float = 0.0
    """The probability that the beginning of a clip serves as a voice prompt, which has no part in the loss."""
    history_dropout: float = 0.0
    """The share of the preceding sound that is hidden from the model, so that it must read the script; 0.5 for a small
    model that is trained from random weights."""
    first_channel_weight: float = 4.0
    """The weight of channel 0 in the loss; each other channel has 1."""
    validation: Path | None = None
    """Prepared data whose loss is recorded at every checkpoint."""
    sample: tuple[str, ...] = ()
    """Scripts that are spoken at every checkpoint, into samples/."""
    codec: str | None = None
    """The codec for --sample; by default that of the base."""
    save_every: int = 500
    """Updates between checkpoints."""
    seed: int = 0
    """The seed of the order of the clips and of random weights."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> None:
        _needs_train_extra()
        from dia_jax.checkpoint import codec_beside, dia_from_json
        from dia_jax.pipeline import DEFAULT_CODEC, DEFAULT_REPO, open_codec
        from dia_jax.training.loop import train
        from dia_jax.training.settings import BatchSettings, LossSettings, TrainSettings

        settings = TrainSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            lora_rank=self.lora_rank,
            accumulate=self.accumulate,
            dtype=self.dtype,
            fsdp=self.fsdp,
            ema_decay=self.ema_decay,
            seed=self.seed,
            batch=BatchSettings(
                self.rows,
                text_dropout=self.text_dropout,
                prompt_probability=self.prompt_probability,
                history_dropout=self.history_dropout,
            ),
            loss=LossSettings(first_channel_weight=self.first_channel_weight),
            save_every=self.save_every,
            sample_every=self.save_every if self.sample else 0,
        )
        base = _start(self.base, self.config, default=DEFAULT_REPO, from_json=dia_from_json)
        codec = None
        if self.sample:
            own = codec_beside(base) if isinstance(base, Path) else None
            codec = open_codec(resolve(self.codec or own or DEFAULT_CODEC), progress=not self.quiet)
        try:
            made = train(
                self.folder,
                self.data,
                settings,
                base=base,
                codec=codec,
                validation=self.validation,
                sample_texts=self.sample,
                progress=not self.quiet,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{self.folder} resumes from its last checkpoint with the same command") from None
        say(f"{made}: trained")


@dataclasses.dataclass(frozen=True)
class TrainCodec:
    """Train a DAC codec on recordings.

    It may be killed at any moment: the same command resumes from the last checkpoint. The run's folder has
    metrics.jsonl, loss.png and samples/, each a stretch of speech followed by the codec's reconstruction; codec/ is the
    result.

    Try:

    dia-jax train-codec run/ recordings/ --base dac_44khz/ --steps 10000

    dia-jax train-codec run/ recordings/ --base dac_44khz/ --decoder-only    # the codes stay as they are
    """

    folder: Positional[Path]
    """The folder of the run: a new one, or one to resume."""
    source: Positional[Path]
    """A folder of recordings, or a JSONL file whose lines have "path"."""
    base: str | None = None
    """The codec to start from; by default the hub's dac_44khz."""
    config: Path | None = None
    """The config.json of a codec to be trained from random weights, instead of --base."""
    steps: int = 100_000
    """Updates of the weights in total."""
    learning_rate: float = 1e-4
    """The initial learning rate."""
    clips: int = 8
    """Stretches of recordings in a batch."""
    frames: int = 64
    """The length of each stretch in frames, 86 per second."""
    decoder_only: bool = False
    """Freeze the encoder and the codebooks, so that prepared data stay valid."""
    save_every: int = 500
    """Updates between checkpoints."""
    seed: int = 0
    """The seed of the order of the stretches and of random weights."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> None:
        _needs_train_extra()
        from dia_jax.checkpoint import dac_from_json
        from dia_jax.pipeline import DEFAULT_CODEC
        from dia_jax.training.codec import train_codec
        from dia_jax.training.settings import CodecSettings

        settings = CodecSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            clips=self.clips,
            frames=self.frames,
            decoder_only=self.decoder_only,
            save_every=self.save_every,
            seed=self.seed,
        )
        base = _start(self.base, self.config, default=DEFAULT_CODEC, from_json=dac_from_json)
        try:
            made = train_codec(self.folder, self.source, settings, base=base, progress=not self.quiet)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{self.folder} resumes from its last checkpoint with the same command") from None
        say(f"{made}: trained")


def _start(base: str | None, config: Path | None, *, default: str, from_json: Any) -> Any:
    """What training starts from: a checkpoint's path, or the config of a model to be trained from random weights."""
    from dia_jax.files import read_json

    if base is not None and config is not None:
        raise DiaError("--base and --config exclude each other; give one.")
    return resolve(base or default) if config is None else from_json(read_json(config))


def _needs_train_extra() -> None:
    try:
        import grain  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DiaError(f"Training needs {error.name}: pip install 'dia_jax[train]'.") from None
