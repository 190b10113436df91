"""Prepared folders and batches: what is kept, what is refused, and that batch i is always the same."""

import collections
import dataclasses
import json

import numpy as np
import pytest
import soundfile

from dia_jax.config import DacConfig
from dia_jax.pipeline import Codec
from dia_jax.training.batches import HISTORY_SPAN, Dataset, batches, length_bucket, make_batch
from dia_jax.training.prepare import Writer, prepare, read_manifest
from dia_jax.training.settings import BatchSettings, DataError
from dia_jax.untrained import SMALL_DAC, SMALL_DIA, random_params


@pytest.fixture(scope="module")
def codec() -> Codec:
    config = DacConfig(encoder_size=2, decoder_size=32)
    return Codec(config, *random_params(config))


def tone(seconds: float, rate: int = 44_100) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)


@pytest.fixture
def recordings(tmp_path):
    """Two clips that can be used and seven that cannot."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name, text, samples, rate in (
        ("a", "[S1] One.", tone(0.3), 44_100),
        ("b", "[S2] Two.", tone(0.5, 16_000), 16_000),
        ("no-tag", "Three.", tone(0.3), 44_100),
        ("no-text", None, tone(0.3), 44_100),
        ("folder", None, tone(0.3), 44_100),
        ("silent", "[S1] Four.", np.zeros(4000), 44_100),
        ("long", "[S1] Five.", tone(36, 8000), 8000),
    ):
        soundfile.write(folder / f"{name}.wav", samples, rate)
        if text is not None:
            (folder / f"{name}.txt").write_text(text)
    (folder / "folder.txt").mkdir()
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "broken.txt").write_text("[S1] Six.")
    soundfile.write(folder / "latin.wav", tone(0.3), 44_100)
    (folder / "latin.txt").write_bytes("[S1] Café.".encode("latin-1"))
    return folder


def test_prepare_keeps_what_can_be_used_and_says_why_not(recordings, tmp_path, codec):
    summary = prepare(recordings, tmp_path / "data", codec)
    dataset = Dataset(tmp_path / "data", SMALL_DIA)
    assert [item.text for item in dataset.items] == ["[S1] One.", "[S2] Two."]
    assert summary.kept == 2
    assert summary.seconds == pytest.approx(0.8, abs=0.02)
    reasons = {path.split("/")[-1]: reason for path, reason in summary.refused}
    assert set(reasons) == {
        "no-tag.wav",
        "no-text.wav",
        "folder.wav",
        "silent.wav",
        "long.wav",
        "broken.wav",
        "latin.wav",
    }
    assert "no transcript" in reasons["no-text.wav"]
    assert "no transcript" in reasons["folder.wav"]
    assert "speaker tag" in reasons["no-tag.wav"]
    assert "36.0 s" in reasons["long.wav"]
    assert "UTF-8" in reasons["latin.wav"]
    listed = [json.loads(line)["source"] for line in (tmp_path / "data" / "refused.jsonl").read_text().splitlines()]
    assert len(listed) == 7
    samples = soundfile.read(recordings / "a.wav", dtype="float32")[0]
    expected = codec.encode(samples)
    np.testing.assert_array_equal(dataset.codes[: dataset.items[0].frames], expected)


def test_prepare_resumes_where_it_was_killed(recordings, tmp_path, codec):
    prepare(recordings, tmp_path / "whole", codec)
    prepare(recordings, tmp_path / "data", codec)
    items, codes = tmp_path / "data" / "items.jsonl", tmp_path / "data" / "codes.bin"
    lines = items.read_text()
    # Killed in the second line, its codes half written; and codes that were lost while the lines stayed.
    for left in (lines[:-5], lines):
        items.write_text(left)
        codes.write_bytes(codes.read_bytes()[:-100])
        assert prepare(recordings, tmp_path / "data", codec).kept == 2
        for name in ("items.jsonl", "codes.bin"):
            assert (tmp_path / "data" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_recording_counts_once(recordings, tmp_path, codec, monkeypatch):
    prepare(recordings, tmp_path / "data", codec)
    monkeypatch.chdir(tmp_path)
    prepare("recordings", tmp_path / "relative", codec)
    monkeypatch.chdir(recordings)
    again = prepare(".", tmp_path / "relative", codec)
    assert again.kept == 2
    assert len(again.refused) == 7
    monkeypatch.chdir(tmp_path)
    (recordings / "a.txt").write_text("[S1] Another.")
    summary = prepare("recordings", tmp_path / "data", codec)
    assert summary.kept == 2
    assert "another transcript" in dict(summary.refused)["recordings/a.wav"]


def test_manifest(tmp_path):
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text('{"path": "x.wav", "text": "[S1] Hi.", "voice": "anna"}\n\n')
    assert read_manifest(manifest) == [{"path": str(tmp_path / "x.wav"), "text": "[S1] Hi.", "voice": "anna"}]
    manifest.write_text('\ufeff{"path": "x.wav", "text": "[S1] Oh\u2028hi."}\n')
    assert [clip["text"] for clip in read_manifest(manifest)] == ["[S1] Oh\u2028hi."]
    for line in ('{"text": "[S1] Hi."}', '{"path": "a\\u0000.wav", "text": "[S1] Hi."}', '{"path": 3}'):
        manifest.write_text(line)
        with pytest.raises(DataError, match="Line 1"):
            read_manifest(manifest)
    with pytest.raises(DataError, match="no manifest"):
        read_manifest(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="names no clip"):
        read_manifest(tmp_path / "empty")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    with Writer(tmp_path / "data", SMALL_DAC) as writer:
        for i in range(23):
            codes = rng.integers(0, 1024, (rng.integers(20, 300), 9))
            writer.add(codes, f"[S1] Clip {i}.", starts=tuple(range(10)))
    return tmp_path / "data"


def test_batch_is_the_delayed_grid_with_its_staircase(folder):
    dataset = Dataset(folder, SMALL_DIA)
    item = dataset.items[0]
    batch = make_batch(dataset, [item], length=length_bucket(dataset.length(item)), prompts=[7])
    grid, loss_mask = batch["grid"][0], batch["loss_mask"][0]
    codes = dataset.codes[item.first : item.first + item.frames]
    eos, pad, bos = SMALL_DIA.eos_token_id, SMALL_DIA.pad_token_id, SMALL_DIA.bos_token_id
    for channel, delay in enumerate(SMALL_DIA.delay_pattern):
        column = grid[:, channel]
        assert (column[: 1 + delay] == bos).all()
        np.testing.assert_array_equal(column[1 + delay : 1 + delay + item.frames], codes[:, channel])
        assert column[1 + delay + item.frames] == eos
        assert (column[2 + delay + item.frames :] == pad).all()
        # The codes after the prompt and EOS count, as targets of the position before.
        expected = np.zeros(len(grid), bool)
        expected[1 + delay + 7 : 2 + delay + item.frames] = True
        np.testing.assert_array_equal(loss_mask[:, channel], expected[1:])
    assert batch["spoken_byte"][0, :12].tolist() == [*range(10), 9, 9]
    assert (batch["spoken_byte"][0, item.frames :] == -1).all()


def test_every_clip_comes_once_an_epoch_and_batches_repeat(folder):
    dataset = Dataset(folder, SMALL_DIA)
    settings = BatchSettings(positions=768, text_dropout=0.5, prompt_probability=0.5)
    stream = batches(dataset, settings, seed=3)
    first = [next(stream) for _ in range(12)]
    again = batches(dataset, settings, seed=3, start=5)
    for before in first[5:]:
        after = next(again)
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    hidden = np.concatenate([(batch["text"] == 0).all(axis=1) for batch in first])
    assert 0 < hidden.mean() < 1
    assert all(batch["text_mask"].any(axis=1).all() for batch in first)  # hidden, but of the length it was

    # Which clips a batch holds shows in their first codes.
    firsts = {tuple(dataset.codes[item.first]): number for number, item in enumerate(dataset.items)}
    delays = np.asarray(SMALL_DIA.delay_pattern)
    sizes = collections.Counter(length_bucket(dataset.length(item)) for item in dataset.items)
    clips = {length: min(max(768 // length, 1), count) for length, count in sizes.items()}  # in a batch
    epoch = sum(-(-count // clips[length]) for length, count in sizes.items())
    assert epoch < len(first)
    found = [firsts[tuple(grid[1 + delays, np.arange(9)])] for batch in first[:epoch] for grid in batch["grid"]]
    # Each at least once, and more often only those that fill up a bucket's last batch.
    assert set(found) == set(range(len(dataset.items)))
    filled = sum(-count % clips[length] for length, count in sizes.items())
    assert len(found) == len(dataset.items) + filled


def test_history_is_hidden_in_stretches_and_never_the_prompt(folder):
    dataset = Dataset(folder, SMALL_DIA)
    settings = BatchSettings(positions=4096, prompt_probability=0.5, history_dropout=0.3)
    stream = batches(dataset, settings)
    shown = []
    for _ in range(20):
        batch = next(stream)
        history, loss_mask = batch["history_mask"], batch["loss_mask"][..., 0]
        prompts = loss_mask.argmax(axis=1)
        for seen, prompt in zip(history, prompts, strict=True):
            # Position 0 is BOS, and a prompt's last codes come later by their delay.
            given = 1 + (prompt + SMALL_DIA.max_delay if prompt else 0)
            assert seen[:given].all()
            changes = np.diff(np.flatnonzero(np.diff(seen[given:])))
            assert (changes % HISTORY_SPAN == 0).all()
        shown.append(history.mean())
    assert 0.65 < np.mean(shown) < 0.85  # 0.7, and what is always given
    stream = batches(dataset, BatchSettings(positions=512))
    assert all(next(stream)["history_mask"].all() for _ in range(3))


def test_a_small_bucket_is_not_filled_up_with_copies(tmp_path):
    """Beyond the next multiple of the devices; batch i stays the same wherever a run resumes."""
    rng = np.random.default_rng(0)
    with Writer(tmp_path / "data", SMALL_DAC) as writer:
        for i in range(5):
            writer.add(rng.integers(0, 1024, (60, 9)), f"[S1] Clip {i}.")
    dataset = Dataset(tmp_path / "data", SMALL_DIA)
    # A batch of 8192 positions has room for 64 clips of 128.
    for multiple, clips in ((1, 5), (2, 6), (4, 8), (8, 8)):
        stream = batches(dataset, BatchSettings(), multiple=multiple)
        first = [next(stream) for _ in range(3)]
        for batch in first:
            assert len(batch["grid"]) == clips
            assert len(np.unique(batch["grid"], axis=0)) == 5
        resumed = next(batches(dataset, BatchSettings(), multiple=multiple, start=2))
        for name, array in first[2].items():
            np.testing.assert_array_equal(resumed[name], array)


def test_batches_are_multiples_of_the_devices(folder):
    dataset = Dataset(folder, SMALL_DIA)
    stream = batches(dataset, BatchSettings(positions=512), multiple=8)
    assert all(len(next(stream)["grid"]) % 8 == 0 for _ in range(8))


def test_each_process_takes_its_share(folder, monkeypatch):
    dataset, settings = Dataset(folder, SMALL_DIA), BatchSettings(positions=768)
    whole = batches(dataset, settings, multiple=4)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    parts = []
    for process in range(2):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        parts.append(batches(dataset, settings, multiple=4))
    for _ in range(3):
        batch = next(whole)
        for name, each in zip(batch, zip(*(next(part).values() for part in parts), strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(each), batch[name])


def test_unusable_data_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="dia-jax prepare"):
        Dataset(tmp_path / "nothing", SMALL_DIA)
    other = dataclasses.replace(SMALL_DIA, decoder=dataclasses.replace(SMALL_DIA.decoder, max_length=256))
    with pytest.raises(DataError, match="takes"):
        Dataset(folder, other)
    with pytest.raises(DataError, match="another codec"):
        Writer(folder, DacConfig(encoder_size=2))
    with pytest.raises(DataError, match="another codec"):
        Writer(folder, SMALL_DAC, "made by other weights")
    few = dataclasses.replace(SMALL_DIA, encoder=dataclasses.replace(SMALL_DIA.encoder, max_length=4))
    with pytest.raises(DataError, match=r"Line 1 of .* takes 4"):
        Dataset(folder, few)
    with pytest.raises(DataError, match="text_dropout is 15"):
        BatchSettings(text_dropout=15)
    (folder / "codes.bin").write_bytes(b"")
    with pytest.raises(DataError, match="shorter"):
        Dataset(folder, SMALL_DIA)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".dataset.x.json").write_text("")  # left by a kill
    with Writer(tmp_path / "full", SMALL_DAC):
        pass
    (tmp_path / "full" / "dataset.json").unlink()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(DataError, match="not empty"):
        Writer(tmp_path / "full", SMALL_DAC)
    (folder / "items.jsonl").write_text("{}\n")
    for opens in (lambda: Writer(folder, SMALL_DAC), lambda: Dataset(folder, SMALL_DIA)):
        with pytest.raises(DataError, match="damaged"):
            opens()
