"""Which byte of a script is said in which frame: the model's own cross-attention over codes that are finished.

One teacher-forced pass gives the attention of every head of every layer to the script. In some heads it walks through
the script as it is said; these are found by how monotone they are. A path through their mean says when each byte is
spoken, and it jumps where a part was left out or said twice. Knows the model and the grid; knows no sound, no voices
and no verdicts.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dia_jax.config import DacConfig, DiaConfig, DiaError
from dia_jax.decode import bucket, text_size
from dia_jax.delay import finished_grid
from dia_jax.mesh import groups, params_of_group, replicate
from dia_jax.ops import precision, rope_angles
from dia_jax.text import SPEAKER_TAGS, encode_text

FRAME_RATE = DacConfig().frame_rate
"""Frames a second of Dia's codec."""
HEADS = 6
"""Heads whose mean is taken, at most."""
NEARLY = 0.8
"""Heads that reach this part of the best head's score are taken."""
TRUSTED = 0.6
"""Score of the best head from which on heads that were found in a clip are believed."""
MEDIAN = 7
"""Frames of the median filter over time (Radford et al., 2022: whisper's word timestamps)."""
FLOOR = 0.01
"""Attention that counts as none: bounds what a single frame can say against a byte."""
JUMP = 15.0
"""Price of a jump in nats: a detour has to explain 7 frames, 80 ms, better to be taken there and back."""
ADVANCE = 2
"""Bytes at most from a frame to the next without a jump: 172 a second, ten times as fast as speech."""


class AlignmentError(DiaError):
    """Codes and a script that cannot be aligned; the message says why."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A word, or a sound such as "(laughs)", and where it stands in a script.

    Attributes:
        text: as written.
        turn: index of its turn; each speaker tag begins one.
        start, stop: its bytes among the tokens of the script, half open.
        is_sound: whether it is a sound in brackets.
    """

    text: str
    turn: int
    start: int
    stop: int
    is_sound: bool


@dataclasses.dataclass(frozen=True)
class Word:
    """A word as it stands in the script, with the marks that touch it.

    Attributes:
        start, end: in seconds.
        confidence: 0 to 1, how surely the model attended to it while it was said.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """When some bytes are said.

    Attributes:
        start, end: frames, half open, of the longest stretch in which they are said; equal where they are not said.
        frames: in which they are said, in all stretches.
        visits: stretches in which they are said.
        confidence: mean attention to them and the byte on either side, over the frames of the longest stretch, 0 to 1.
    """

    start: int
    end: int
    frames: int
    visits: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A script and codes, aligned.

    Attributes:
        text: the script.
        attention: float32 [T, S], of frame t to byte s; the mean of the chosen heads.
        path: int32 [T], the byte that is said in each frame.
        heads: the chosen heads, (layer, head, score), best first; a score is between 0 and 1.
        trusted: whether the heads are known to follow a script, or followed this one well.
    """

    text: str
    attention: np.ndarray
    path: np.ndarray
    heads: tuple[tuple[int, int, float], ...]
    trusted: bool

    @functools.cached_property
    def spans(self) -> tuple[Span, ...]:
        """The words and sounds of the script."""
        return spans(self.text)

    @functools.cached_property
    def words(self) -> tuple[Word, ...]:
        """The words of the script, with their times in seconds."""
        found = []
        for span in self.spans:
            if not span.is_sound:
                timing = self.timing(span.start, span.stop)
                times = timing.start / FRAME_RATE, timing.end / FRAME_RATE
                found.append(Word(span.text, *times, timing.confidence))
        return tuple(found)

    def timing(self, start: int, stop: int) -> Timing:
        """When the bytes start .. stop - 1 are said."""
        inside = (self.path >= start) & (self.path < stop)
        edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
        stretches = edges.reshape(-1, 2)
        if not len(stretches):
            # Between the frames of what is before and of what follows.
            at = int((self.path < start).sum()) if len(self.path) else 0
            return Timing(at, at, 0, 0, 0.0)
        first, last = stretches[np.argmax(stretches[:, 1] - stretches[:, 0])]
        near = self.attention[first:last, max(start - 1, 0) : stop + 1].sum(axis=1)
        return Timing(int(first), int(last), int(inside.sum()), len(stretches), float(np.minimum(near, 1).mean()))

    @property
    def jumps(self) -> tuple[tuple[int, int, int], ...]:
        """Where the path does not go on: (frame, byte before, byte after)."""
        moves = np.diff(self.path)
        at = np.flatnonzero((moves < 0) | (moves > ADVANCE))
        return tuple((int(t + 1), int(self.path[t]), int(self.path[t + 1])) for t in at)

    @property
    def confidence(self) -> float:
        """Mean attention along the path, to the byte and its neighbours, 0 to 1."""
        if not len(self.path):
            return 0.0
        columns = np.clip(self.path[:, None] + np.arange(-1, 2), 0, self.attention.shape[1] - 1)
        near = np.take_along_axis(self.attention, columns, axis=1).sum(axis=1)
        return float(np.minimum(near, 1).mean())


def spans(text: str) -> tuple[Span, ...]:
    """The words and sounds of a script with the tags [S1] and [S2], in order."""
    found, turn, places = [], -1, byte_positions(text)
    for match in re.finditer(r"\[S[12]\]|\([a-z ]+\)|(?:(?!\[S[12]\])[^\s(])+|\(", text):
        part = match.group()
        if part.encode() in SPEAKER_TAGS:
            turn += 1
            continue
        start, stop = (int(places[at]) for at in match.span())
        found.append(Span(part, turn, start, stop, part.startswith("(") and len(part) > 1))
    return tuple(found)


def byte_positions(text: str) -> np.ndarray:
    """For each character of a script, and its end, the index of its byte among the tokens; a tag is one byte.

    Returns:
        int [len(text) + 1].
    """
    sizes = np.array([len(character.encode()) for character in text], int)
    for match in re.finditer(r"\[S[12]\]", text):
        sizes[match.start() : match.end()] = 1, 0, 0, 0
    return np.concatenate([[0], np.cumsum(sizes)])


class Aligner:
    """Aligns codes and scripts on a model's first device, or first group of devices.

    Args:
        graphdef, params, config: the model, placed as `mesh.sharding` says.
        mesh: from `mesh.decode_mesh`.
    """

    def __init__(self, graphdef: nnx.GraphDef, params: nnx.State, config: DiaConfig, *, mesh: Mesh):
        self._config = config
        self._group = groups(mesh)[0]
        self._weights = graphdef, params_of_group(params, self._group)

    def __call__(self, text: str, codes: np.ndarray) -> Alignment:
        """Aligns a clip.

        Args:
            text: the whole script of the codes, with its tags.
            codes: int [T, C].

        Raises:
            TextError: the model cannot take the script.
            AlignmentError: there are no codes, or more than the model's positions hold.
        """
        config = self._config
        tokens = encode_text(text, max_length=config.encoder.max_length, vocab_size=config.encoder.vocab_size)
        if not 1 <= len(codes) <= config.frame_budget:
            raise AlignmentError(
                f"There are {len(codes)} frames to align; the model's positions hold 1 to {config.frame_budget}."
            )
        known = config.speech.alignment_heads
        frames, size = len(codes), text_size(len(tokens), config)
        length = bucket(frames, 256, config.decoder.max_length)
        row = np.zeros((1, size), np.int32)
        row[0, : len(tokens)] = tokens
        grid = np.full((1, length, config.decoder.num_channels), config.pad_token_id, np.int32)
        grid[0, :frames] = finished_grid(
            codes,
            delay_pattern=config.delay_pattern,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )[:frames]
        with jax.set_mesh(self._group):
            mean, scores = _attention(*self._weights, row, grid, np.int32(frames), known)
        attention = np.asarray(mean)[:frames, : len(tokens)]
        scores = np.asarray(scores)
        order = np.argsort(scores, axis=None)[::-1][:HEADS]
        pairs = known or [(int(i // scores.shape[1]), int(i % scores.shape[1])) for i in order]
        heads = sorted(((*pair, float(scores[pair])) for pair in pairs), key=lambda head: -head[2])
        chosen = tuple(head for head in heads if known or head[2] >= NEARLY * heads[0][2])
        trusted = bool(known) or heads[0][2] >= TRUSTED
        return Alignment(text, attention, best_path(attention), chosen, trusted)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _attention(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    text: jax.Array,
    grid: jax.Array,
    frames: jax.Array,
    known: tuple[tuple[int, int], ...],
) -> tuple[jax.Array, jax.Array]:
    """Attention of the frames to the script.

    Args:
        text: int32 [1, S], 0 where padded.
        grid: int32 [1, T, C]. Position t predicts frame t of channel 0.
        frames: T without the padding.
        known: the heads whose mean is wanted; none for the best ones.

    Returns:
        float32 [T, S], the mean over these heads; and float32 [L, N], the score of every head.
    """
    model = nnx.merge(graphdef, params)
    decoder, text_mask, start = model.decoder, text != 0, jnp.zeros(1, jnp.int32)
    encoded = model.encoder(text, text_mask)
    positions = jnp.arange(grid.shape[1])[None]
    angles = rope_angles(positions, decoder.config.head_dim, decoder.config.rope_theta)
    cross_angles = decoder.cross_angles(positions)
    is_frame = positions[0] < frames
    x = replicate(decoder.embed(grid))
    best = jnp.zeros((HEADS, grid.shape[1], text.shape[1]))
    best_scores = jnp.zeros(HEADS)
    scores, wanted = [], []
    for index, (layer, kv) in enumerate(zip(decoder.layers, decoder.cross_cache(encoded), strict=True)):
        x = x + layer.attend_self(x, angles, None, start)[0]
        q, k = layer.cross_queries(x, cross_angles)[0], kv.k[0]  # [T, N, H], [K, S, H]
        q = q.astype(k.dtype).reshape(len(q), len(k), -1, k.shape[-1])  # [T, K, G, H]
        logits = jnp.einsum("TKGH,KSH->KGTS", q, k, precision=precision(k.dtype), preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(text_mask, logits, jnp.finfo(jnp.float32).min))
        weights = weights.reshape(-1, *weights.shape[2:])
        scores.append(monotony(weights, is_frame))
        wanted += [weights[head] for of_layer, head in known if of_layer == index]
        # Of all heads so far only the best are kept: all of a large model's would be gigabytes.
        best_scores, kept = jax.lax.top_k(jnp.concatenate([best_scores, scores[-1]]), HEADS)
        best = jnp.concatenate([best, weights])[kept]
        x = x + layer.attend_cross(x, cross_angles, (kv, text_mask[:, None]))
        x = x + layer.mlp(layer.pre_mlp_norm(x))
    if known:
        return jnp.stack(wanted).mean(axis=0), jnp.stack(scores)
    used = best_scores >= NEARLY * best_scores[0]
    return jnp.einsum("N,NTS->TS", used / used.sum(), best), jnp.stack(scores)


def monotony(weights: jax.Array, is_frame: jax.Array) -> jax.Array:
    """How well heads walk through a script as time goes on.

    The correlation of time and the mean position that a head attends to, times how sharp its attention is. What a byte
    gets in the mean over time does not count: some heads rest on one byte where they have nothing to do.

    Args:
        weights: float32 [N, T, S], attention.
        is_frame: bool [T], False where padded.

    Returns:
        float32 [N], 0 to 1.
    """
    count = is_frame.sum()
    above = jnp.where(is_frame[:, None], weights, 0)
    above = jnp.where(is_frame[:, None], jnp.maximum(weights - above.sum(axis=1, keepdims=True) / count, 0), 0)
    total = above.sum(axis=-1)
    positions = above @ jnp.arange(weights.shape[-1], dtype=jnp.float32) / jnp.maximum(total, 1e-9)
    times = jnp.arange(weights.shape[1], dtype=jnp.float32)
    times = jnp.where(is_frame, times - jnp.sum(times * is_frame) / count, 0)
    positions = jnp.where(is_frame, positions - jnp.sum(positions * is_frame, axis=1, keepdims=True) / count, 0)
    spread = jnp.sqrt(jnp.sum(jnp.square(positions), axis=1) * jnp.sum(jnp.square(times)))
    correlation = jnp.sum(positions * times, axis=1) / jnp.maximum(spread, 1e-9)
    return jnp.maximum(correlation, 0) * above.max(axis=-1).sum(axis=-1) / count


def best_path(attention: np.ndarray) -> np.ndarray:
    """The likeliest walk through a script (Viterbi, 1967).

    From a frame to the next it stays at its byte or goes on by one or two; all else is a jump, and costs `JUMP`. It
    begins at the first byte, or with a jump, and ends anywhere.

    Args:
        attention: float32 [T, S].

    Returns:
        int32 [T], a byte for each frame.
    """
    frames, size = attention.shape
    above = _median(attention) - attention.mean(axis=0)
    gains = np.log(np.maximum(above, 0) + FLOOR)
    score = np.full(size, -JUMP)
    score[0] = 0
    score += gains[0]
    came_from = np.zeros((frames, size), np.int32)
    stay = np.arange(size, dtype=np.int32)
    for t in range(1, frames):
        top = int(score.argmax())
        best, source = score, stay
        for step in range(1, ADVANCE + 1):
            moved = np.concatenate([np.full(step, -np.inf), score[:-step]])[:size]
            better = moved > best
            best, source = np.where(better, moved, best), np.where(better, stay - step, source)
        jumps = best < score[top] - JUMP
        came_from[t] = np.where(jumps, top, source)
        score = np.where(jumps, score[top] - JUMP, best) + gains[t]
    path = np.zeros(frames, np.int32)
    path[-1] = score.argmax()
    for t in range(frames - 1, 0, -1):
        path[t - 1] = came_from[t, path[t]]
    return path


def _median(attention: np.ndarray) -> np.ndarray:
    """The median of `MEDIAN` frames around each frame, repeating the first and the last."""
    padded = np.pad(attention, ((MEDIAN // 2, MEDIAN // 2), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN, axis=0), axis=-1)
