"""The voice in the box, on the road that a newcomer takes. How well it speaks, benchmarks/tiny_voice.py measures."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import torch
import transformers
from flax import nnx

import dia_jax
from dia_jax import Dia, save_params
from dia_jax.cli import run
from dia_jax.text import encode_text
from dia_jax.training.batches import Dataset, make_batch
from dia_jax.training.loss import loss
from dia_jax.training.prepare import Writer
from dia_jax.training.settings import LossSettings

from conftest import reference_generate

FOLDER = Path(dia_jax.__file__).parent / "tiny"
SENTENCE = "The old teacher found a letter behind the kitchen door."
FRAMES_PER_BYTE = 6  # of its teacher


@pytest.fixture(scope="module")
def tiny() -> Dia:
    return Dia.from_pretrained("tiny")


def pitch(samples: np.ndarray) -> float:
    """The strongest period of the clip's autocorrelation near that of the voice to which it points, in Hz: a low voice
    repeats after its own period, and after the high one's, which is half as long, far less (0.1 against 1)."""
    power = np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2
    correlation = np.fft.irfft(power)
    high, low = (round(44_100 / voice) for voice in (172.3, 86.1))
    period = high if correlation[high] > 0.5 * correlation[low] else low
    around = range(round(0.8 * period), round(1.2 * period))
    return 44_100 / max(around, key=lambda lag: correlation[lag])


def test_it_is_small_and_says_where_it_comes_from():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    card = (FOLDER / "README.md").read_text()
    for word in ("hibari", "Kokoro-82M", "Apache-2.0", "word error rate"):
        assert word in card


def test_two_voices_speak_and_end(tiny: Dia):
    clips = tiny.generate([f"[S1] {SENTENCE}", f"[S2] {SENTENCE}"], seed=1, max_tokens=600)
    expected = FRAMES_PER_BYTE * (len(SENTENCE) + 3) * 512
    for clip in clips:
        assert expected / 1.5 < len(clip) < expected * 1.5
        assert np.abs(clip[-1024:]).max() < 0.1 * np.abs(clip).max()
    assert pitch(clips[0]) == pytest.approx(172.3, rel=0.03)
    assert pitch(clips[1]) == pytest.approx(86.1, rel=0.03)


def test_it_says_what_is_written(tiny: Dia, tmp_path: Path):
    """What the teacher said is likelier with its own script than with the other one's, which is as long.

    tiny_said.npz: codes by `codec.encode` of the parts that `spoken.say_script` (benchmarks/tiny) makes of two
    sentences outside the training texts, in the voice of [S1].
    """
    assert tiny.codec is not None
    with np.load(Path(__file__).parent / "tiny_said.npz") as said, Writer(tmp_path, tiny.codec.config) as writer:
        for text, codes in said.items():
            writer.add(codes, f"[S1] {text}")
    dataset = Dataset(tmp_path, tiny.config)
    batch = make_batch(dataset, dataset.items)
    other = batch | {"text": batch["text"][::-1]}
    assert np.array_equal(batch["text_mask"][0], batch["text_mask"][1])
    model = nnx.merge(tiny.graphdef, tiny.params)
    right, wrong = (float(loss(model, each, LossSettings())[1]["channels"][0]) for each in (batch, other))
    assert wrong > right + 0.5


def test_its_recipe_has_the_trainers_batches_and_loss(tiny: Dia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks" / "tiny"))
    network = importlib.import_module("network")
    assert tiny.codec is not None
    with np.load(Path(__file__).parent / "tiny_said.npz") as said, Writer(tmp_path, tiny.codec.config) as writer:
        table = np.concatenate(list(said.values()))
        for text, codes in said.items():
            starts = range(0, len(codes) - FRAMES_PER_BYTE, FRAMES_PER_BYTE)  # behind the last byte is a space
            writer.add(codes, f"[S1] {text}", starts=tuple(starts))
    dataset = Dataset(tmp_path, tiny.config)
    batch = make_batch(dataset, dataset.items)
    chunks = np.arange(len(table) // FRAMES_PER_BYTE, dtype=np.int32).reshape(2, -1)
    scripts = np.zeros(chunks.shape, np.uint8)
    scripts[:, :-1] = batch["text"][:, : chunks.shape[1] - 1]
    rows = {"text": scripts, "chunks": chunks, "prompt": np.zeros(2, np.int32)}
    table = table.reshape(-1, FRAMES_PER_BYTE, table.shape[-1])
    laid = network.lay_out(rows, table, batch["loss_mask"].shape[1], tiny.config)
    for name in ("grid", "loss_mask", "spoken_byte"):
        np.testing.assert_array_equal(laid[name], batch[name])

    weights = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(tiny.params)}
    settings = LossSettings(alignment_weight=0.5, alignment_layers=network.ALIGNMENT_LAYERS, alignment_width=0)
    value, parts = network.loss(weights, laid, tiny.config, 0.5)
    expected, theirs = loss(nnx.merge(tiny.graphdef, tiny.params), batch, settings)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(parts["channels"], theirs["channels"], rtol=1e-4)

    prompt = np.array([5, 0], np.int32)
    mixed = network.misremember(weights, laid, tiny.config, prompt, jax.random.key(0), 0.5)["history"]
    changed, special = mixed != laid["history"], np.asarray(laid["history"]) >= tiny.config.eos_token_id
    prompted = 5 * FRAMES_PER_BYTE + max(tiny.config.delay_pattern)
    assert not changed[0, :prompted].any()
    assert not changed[special].any()
    assert changed[0, prompted:].any()
    assert changed[1].any()
    assert (mixed[changed] < tiny.config.eos_token_id).all()


def test_transformers_says_the_same(tiny: Dia, tmp_path: Path):
    save_params(tmp_path / "theirs", tiny.config, tiny.params, layout="transformers")
    theirs = transformers.DiaForConditionalGeneration.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    # No settings are handed over: the exported ones hold the guidance.
    assert theirs.generation_config.guidance_scale == tiny.config.sampling.cfg_scale
    script = f"[S1] {SENTENCE}"
    codes = reference_generate(theirs, encode_text(script, max_length=1024), frames=600)
    assert len(codes) > 200
    np.testing.assert_array_equal(tiny.generate_codes(script, temperature=0.0, max_tokens=600), codes)


def test_the_command_line_speaks_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["[S1] Good morning, how are you?", "--seed", "1", "--picture", "--quiet"]
    assert run(["generate", *arguments, "--output", str(tmp_path / "hello.wav")]) == 0
    said = capsys.readouterr().err
    assert "nari-labs/Dia-1.6B-0626" in said
    assert "no digits" not in said
    assert 0.5 < soundfile.info(tmp_path / "hello.wav").duration < 5
    assert (tmp_path / "hello.png").exists()
