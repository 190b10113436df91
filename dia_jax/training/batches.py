"""Codes on disk -> batches for the loss.

Which clips are in batch i, and what is hidden in it, follows from the data, the seed and i alone. A resumed run needs
no other state to see the batches that it would have seen.

Knows prepared folders, the token ids and the delays of a model's config; knows no weights.
"""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import jax
import numpy as np

from dia_jax.codec import Codec
from dia_jax.config import DiaConfig
from dia_jax.decode import bucket
from dia_jax.delay import finished_grid
from dia_jax.text import TextError, encode_text
from dia_jax.training.prepare import Item, read_folder
from dia_jax.training.settings import BatchSettings, DataError

SHORTEST_BUCKET = 128
"""Length of the shortest bucket in positions; the next ones are 192, 256, 384, 512, ..."""
HISTORY_SPAN = 32
"""Consecutive positions that history dropout hides together: a third of a second, about a word."""


class Dataset:
    """A prepared folder, opened for reading.

    Args:
        folder: path of the folder.
        config: of the model to be trained.

    Raises:
        DataError: the folder is not prepared data, is damaged, or does not fit the model.
    """

    def __init__(self, folder: str | os.PathLike, config: DiaConfig):
        self.folder, self.config = Path(folder), config
        if not (self.folder / "dataset.json").exists():
            raise DataError(f"{folder} holds no prepared data; make some with: dia-jax prepare")
        self.codec, self.encoder, self.items = read_folder(self.folder)
        channels = self.codec.num_codebooks
        if (channels, self.codec.codebook_size) != (config.decoder.num_channels, config.eos_token_id):
            raise DataError(
                f"{folder} has {channels} codebooks of {self.codec.codebook_size} entries, but the model needs "
                f"{config.decoder.num_channels} of {config.eos_token_id}."
            )
        if not self.items:
            raise DataError(f"{folder} holds no clip.")
        frames, codes = self.items[-1].first + self.items[-1].frames, self.folder / "codes.bin"
        if not codes.exists() or codes.stat().st_size < frames * channels * 2:
            raise DataError(f"{folder}/codes.bin is shorter than items.jsonl says; prepare it again.")
        self.codes = np.memmap(codes, np.int16, "r", shape=(frames, channels))
        longest = max(item.frames for item in self.items)
        if longest > config.frame_budget:
            raise DataError(f"{folder} holds a clip of {longest} frames, but the model takes {config.frame_budget}.")
        for number, item in enumerate(self.items, 1):
            try:
                encode_text(item.text, max_length=config.encoder.max_length, vocab_size=config.encoder.vocab_size)
            except TextError as error:
                raise DataError(f"Line {number} of {folder}/items.jsonl: {error}") from None

    def made_by(self, codec: Codec) -> bool:
        """Whether a codec decodes these codes, as far as the folder records it."""
        return codec.config == self.codec and self.encoder in (None, codec.digest)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the clips and of the codec that made them."""
        digest = hashlib.sha256()
        for name in ("dataset.json", "items.jsonl"):
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()[:16]

    def length(self, item: Item) -> int:
        """Positions of the grid that predict a clip: its frames, EOS, and the delay of the last channel."""
        return item.frames + 1 + self.config.max_delay


def length_bucket(length: int) -> int:
    """The length to which clips of `length` positions are padded: 128, 192, 256, 384, 512, ..."""
    power = bucket(length, SHORTEST_BUCKET, 1 << 30)
    return power * 3 // 4 if power > SHORTEST_BUCKET and length <= power * 3 // 4 else power


def make_batch(
    dataset: Dataset, items: Sequence[Item], *, length: int | None = None, prompts: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """Lays clips out for the loss.

    Args:
        dataset: the dataset of the clips.
        items: B clips.
        length: T, the length to which they are padded; by default what the longest needs.
        prompts: for each clip the number of frames that are a voice prompt; by default the items' own.

    Returns:
        text: int32 [B, S], padded with 0.
        text_mask: bool [B, S], False where padded.
        grid: int32 [B, T + 1, C]: BOS, the delayed codes, EOS after each channel's last code, then PAD.
        history_mask: bool [B, T], whether the decoder sees position 0 .. T - 1 of the grid; here True everywhere.
        loss_mask: bool [B, T, C], which targets, positions 1 .. T of the grid, count: the codes after the prompt, and
            EOS.
        spoken_byte: int32 [B, T], the index of the byte that is spoken in the frame that position t predicts; -1 where
            it is not known.
    """
    config = dataset.config
    length = length or max(dataset.length(item) for item in items)
    prompts = [item.prompt for item in items] if prompts is None else prompts
    texts = [encode_text(item.text, max_length=config.encoder.max_length) for item in items]
    text_length = bucket(max(map(len, texts)), 128, config.encoder.max_length)
    text = np.zeros((len(items), text_length), np.int32)
    grid = np.full((len(items), length + 1, config.decoder.num_channels), config.pad_token_id, np.int32)
    loss_mask = np.zeros((len(items), length, config.decoder.num_channels), bool)
    spoken_byte = np.full((len(items), length), -1, np.int32)
    delays = np.asarray(config.delay_pattern)
    for i, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        text[i, : len(texts[i])] = texts[i]
        codes = dataset.codes[item.first : item.first + item.frames]
        delayed = finished_grid(
            codes,
            delay_pattern=config.delay_pattern,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )[: length + 1]
        grid[i, : len(delayed)] = delayed
        frame = np.arange(length)[:, None] - delays  # of the targets at position 1 + t
        loss_mask[i] = (frame >= prompt) & (frame <= item.frames)
        if item.starts is not None:
            spoken = np.searchsorted(item.starts, np.arange(item.frames), side="right") - 1
            spoken_byte[i, : item.frames] = np.maximum(spoken, 0)
    return {
        "text": text,
        "text_mask": text != 0,
        "grid": grid,
        "history_mask": np.ones((len(items), length), bool),
        "loss_mask": loss_mask,
        "spoken_byte": spoken_byte,
    }


def batches(
    dataset: Dataset, settings: BatchSettings, *, seed: int = 0, multiple: int = 1, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, read ahead in threads.

    Args:
        dataset: the clips.
        settings: how clips become batches.
        seed: of the order of the clips, the dropouts and the prompts.
        multiple: the number of clips in a batch is a multiple of this, so that this many devices can share it.
        start: index of the first batch; batch i does not depend on it.

    Yields:
        what `make_batch` returns, with scripts and positions hidden and prompts given at random; of several
        processes each gets its own share of the clips.
    """
    source = _BatchSource(dataset, settings, seed, multiple)
    processes, process = jax.process_count(), jax.process_index()

    def share(index: int) -> dict[str, np.ndarray]:
        batch = source(start + index)
        clips = len(batch["text"]) // processes
        return {name: array[process * clips : (process + 1) * clips] for name, array in batch.items()}

    stream = grain.MapDataset.range(1 << 40).map(share)
    return iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


class _BatchSource:
    """Batch i of an endless run over a dataset, by random access. A batch has clips of one bucket."""

    def __init__(self, dataset: Dataset, settings: BatchSettings, seed: int, multiple: int):
        self.dataset, self.settings, self.seed = dataset, settings, seed
        self.buckets: dict[int, list[int]] = {}
        for index, item in enumerate(dataset.items):
            self.buckets.setdefault(length_bucket(dataset.length(item)), []).append(index)
        self.sizes = {}  # clips in a batch, by the bucket's length
        for length, indices in self.buckets.items():
            wanted = max(settings.positions // length // multiple, 1) * multiple
            # Copies of clips cost time and teach nothing: a small bucket has no more than the devices require.
            self.sizes[length] = min(wanted, -(-len(indices) // multiple) * multiple)
        self.per_epoch = sum(-(-len(indices) // self.sizes[length]) for length, indices in self.buckets.items())
        self.plan = functools.lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> list[tuple[int, list[int]]]:
        """The length and the clips of each batch of an epoch, in order."""
        rng = np.random.default_rng([self.seed, epoch])
        plan = []
        for length in sorted(self.buckets):
            indices, size = rng.permutation(self.buckets[length]), self.sizes[length]
            count = -(-len(indices) // size)
            indices = np.resize(indices, count * size)  # the last batch is filled up from the beginning
            plan += [(length, indices[i * size : (i + 1) * size].tolist()) for i in range(count)]
        return [plan[i] for i in rng.permutation(len(plan))]

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        length, indices = self.plan(index // self.per_epoch)[index % self.per_epoch]
        rng = np.random.default_rng([self.seed, 1, index])
        hidden = rng.random(len(indices)) < self.settings.text_dropout
        prompted = rng.random(len(indices)) < self.settings.prompt_probability
        shares = rng.uniform(0.1, 0.5, len(indices))
        items = [self.dataset.items[i] for i in indices]
        prompts = [
            item.prompt or int(share * item.frames * chosen)
            for item, share, chosen in zip(items, shares, prompted, strict=True)
        ]
        batch = make_batch(self.dataset, items, length=length, prompts=prompts)
        # The spans of a clip begin at a random offset, or their borders would be the same in every clip.
        rates = rng.uniform(0, 2 * self.settings.history_dropout, len(items))
        spans = rng.random((len(items), length // HISTORY_SPAN + 2)) >= rates[:, None]
        offsets = rng.integers(HISTORY_SPAN, size=len(items))
        seen = np.stack([np.repeat(s, HISTORY_SPAN)[o : o + length] for s, o in zip(spans, offsets, strict=True)])
        # A prompt is always seen as a whole; because of the delays its last codes come `max_delay` positions later.
        ends = np.asarray([prompt + self.dataset.config.max_delay if prompt else 0 for prompt in prompts])
        given = np.arange(length) <= ends[:, None]
        return batch | {"text": np.where(hidden[:, None], 0, batch["text"]), "history_mask": seen | given}
