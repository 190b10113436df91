"""Pictures of alignments: which texts they show, where, and that the file appears whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dia_jax import picture
from dia_jax.longform.speech import SpokenTurn, Word
from dia_jax.picture import PictureError, draw_alignment

RATE = 44_100


def turn(speaker: str, text: str, start: float, step: float) -> SpokenTurn:
    words = tuple(Word(word, start + i * step, start + (i + 0.9) * step, i / 4) for i, word in enumerate(text.split()))
    return SpokenTurn(0, speaker, text, start, words[-1].end, words, ())


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, in place of their files."""
    figures: list[Any] = []
    monkeypatch.setattr(picture, "_save", lambda figure, path: figures.append(figure))
    return figures


def texts(panel: Any) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_turns_and_words_stand_at_their_times(tmp_path: Path, drawn: list[Any]):
    turns = [turn("Anna", "It costs $5 and $6.", 0.2, 0.5), turn("Ben", "So?", 4.0, 0.5)]
    draw_alignment(tmp_path / "x.png", noise(5), turns, rate=RATE)
    sound, lane, words = drawn[0].axes
    assert sound.get_xlim() == lane.get_xlim() == words.get_xlim() == (0.0, 5.0)
    assert texts(lane) == ["Anna", "Ben"]
    assert texts(words) == ["It", "costs", "$5", "and", "$6.", "So?"]
    assert [text.get_position()[0] for text in words.texts[:2]] == pytest.approx([0.425, 0.925])
    first, second = (box.get_facecolor() for box in lane.patches)
    assert first != second


def test_words_without_room_are_left_out(tmp_path: Path, drawn: list[Any]):
    turns = [turn("Anna", "a " + "incomprehensibilities " * 3, 1.0, 0.2), turn("Ben", "Wonderful!", 8.0, 1.5)]
    draw_alignment(tmp_path / "x.png", noise(10), turns, rate=RATE)
    words = drawn[0].axes[2]
    assert texts(words) == ["a", "Wonderful!"]
    assert len(words.patches) == 5


def test_attention_shares_the_axis_of_time(tmp_path: Path, drawn: list[Any]):
    attention, positions = np.eye(20) / 3, np.arange(20)
    draw_alignment(
        tmp_path / "x.png", noise(2), [turn("Anna", "Yes.", 0, 1)], rate=RATE, attention=attention, positions=positions
    )
    panel = drawn[0].axes[3]
    assert panel.get_xlim() == (0.0, 2.0)
    assert panel.images[0].get_extent() == [0.0, 2.0, 0.0, 20]
    np.testing.assert_allclose(np.asarray(panel.images[0].get_array()), np.eye(20))
    times, heights = panel.lines[0].get_data()
    np.testing.assert_allclose(times, 0.05 + 0.1 * np.arange(20))
    np.testing.assert_allclose(heights, 0.5 + np.arange(20))


def test_the_file_appears_whole(tmp_path: Path):
    path = tmp_path / "x.png"
    draw_alignment(path, noise(1), [turn("Anna", "Yes.", 0, 1)], rate=RATE, attention=np.zeros((5, 4)))
    assert path.read_bytes().startswith(b"\x89PNG")
    draw_alignment(path, noise(1), [], rate=RATE)
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
    with pytest.raises(PictureError, match="Cannot write"):
        draw_alignment(tmp_path / "no" / "x.png", noise(1), [], rate=RATE)
