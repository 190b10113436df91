"""Codes and scripts aligned by attention: paths on attention that is made up, and tiny's on what its teacher said."""

from pathlib import Path

import numpy as np
import pytest

from dia_jax import Dia, TextError
from dia_jax.alignment import JUMP, Alignment, AlignmentError, best_path, byte_positions, monotony, spans

FRAMES_PER_BYTE = 6


def attention_of(path: list[int], size: int) -> np.ndarray:
    """Attention that sees the right byte half of the time, and noise."""
    rng = np.random.default_rng(0)
    attention = rng.dirichlet(np.full(size, 0.2), len(path)) * 0.5
    attention[np.arange(len(path)), path] += 0.5
    return attention.astype(np.float32)


def steady(first: int, last: int) -> list[int]:
    return [byte for byte in range(first, last) for _ in range(FRAMES_PER_BYTE)]


def test_a_steady_path_is_found():
    path = steady(0, 40)
    found = best_path(attention_of(path, 40))
    assert np.abs(found - path).max() <= 1
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize(
    ("path", "jump"),
    [
        (steady(0, 12) + steady(25, 40), (12 * FRAMES_PER_BYTE, 11, 25)),  # a part is left out
        (steady(0, 30) + steady(15, 40), (30 * FRAMES_PER_BYTE, 29, 15)),  # a part is said twice
    ],
)
def test_jumps_are_found(path: list[int], jump: tuple[int, int, int]):
    alignment = Alignment("[S1] " + "x" * 38, attention_of(path, 40), best_path(attention_of(path, 40)), (), True)
    ((at, before, after),) = alignment.jumps
    assert abs(at - jump[0]) <= 2
    assert (before, after) == pytest.approx(jump[1:], abs=1)


def test_a_short_glance_is_no_jump():
    path = steady(0, 40)
    path[100:103] = [35, 35, 35]
    assert np.abs(best_path(attention_of(path, 40)) - steady(0, 40)).max() <= 1
    assert 3 * np.log(100) < JUMP


def test_timings_of_what_is_said_once_twice_and_not_at_all():
    path = np.array(steady(0, 20) + steady(10, 20) + steady(30, 40))
    alignment = Alignment("", attention_of(path.tolist(), 40), path, (), True)
    once, twice, never = alignment.timing(0, 5), alignment.timing(12, 15), alignment.timing(22, 28)
    assert (once.start, once.end, once.frames, once.visits) == (0, 30, 30, 1)
    assert (twice.start, twice.end, twice.frames, twice.visits) == (72, 90, 36, 2)
    assert (never.start, never.frames, never.visits, never.confidence) == (never.end, 0, 0, 0.0)
    assert once.confidence > 0.5


def test_heads_that_walk_are_told_from_those_that_rest_or_roam():
    frames, size = 240, 40
    walking = attention_of(steady(0, 40), size)
    resting = np.zeros((frames, size), np.float32)
    resting[:, 0] = 1
    roaming = attention_of(np.random.default_rng(1).integers(0, size, frames).tolist(), size)
    backward = walking[::-1]
    scores = monotony(np.stack([walking, resting, roaming, backward]), np.ones(frames, bool))
    assert scores[0] > 0.4
    assert np.asarray(scores[1:]).max() < 0.15
    padded = np.pad(walking, ((0, 60), (0, 0)))
    assert monotony(padded[None], np.arange(300) < 240)[0] == pytest.approx(float(scores[0]), rel=1e-5)


def test_words_and_bytes_of_a_script():
    text = "[S1] Grüß dich (laughs) Ann. [S2](sighs) No(w)"
    found = [(span.text, span.turn, span.is_sound) for span in spans(text)]
    assert found == [
        ("Grüß", 0, False), ("dich", 0, False), ("(laughs)", 0, True), ("Ann.", 0, False), ("(sighs)", 1, True),
        ("No", 1, False), ("(w)", 1, True),
    ]  # fmt: skip
    data = text.encode().replace(b"[S1]", b"\x01").replace(b"[S2]", b"\x02")
    for span in spans(text):
        assert data[span.start : span.stop].decode() == span.text
    assert byte_positions(text)[-1] == len(data)


def test_tiny_knows_when_its_teacher_says_what():
    """tiny_said.npz: see test_tiny.py. Each byte lasts six frames; the tag and the space behind it are two bytes."""
    dia = Dia.from_pretrained("tiny", load_codec=False)
    with np.load(Path(__file__).parent / "tiny_said.npz") as said:
        text, codes = next(iter(said.items()))
    alignment = dia.align(f"[S1] {text}", codes)
    assert alignment.heads[0][2] > 0.8
    assert [word.text for word in alignment.words] == text.split()
    errors = [alignment.path - np.minimum(np.arange(len(codes)) // FRAMES_PER_BYTE, alignment.path.max())]
    assert np.percentile(np.abs(errors), 95) <= 1
    starts = [span.start * FRAMES_PER_BYTE * 512 / 44_100 for span in alignment.spans]
    assert np.median(np.abs(np.subtract(starts, [word.start for word in alignment.words]))) < 0.04
    assert not alignment.jumps


def test_what_cannot_be_aligned_is_refused(dia: Dia):
    with pytest.raises(AlignmentError, match=r"There are 0 frames to align; the model's positions hold 1 to 3056\."):
        dia.align("[S1] Hello.", np.zeros((0, 9), np.int32))
    with pytest.raises(TextError, match="begin with"):
        dia.align("Hello.", np.zeros((10, 9), np.int32))
