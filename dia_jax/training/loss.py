"""Cross-entropy over the delayed grid, teacher-forced.

Knows the model's layers and walks them itself, so that each can be recomputed in the backward pass (remat) and the
cross-attention be looked at; knows no optimizer and no files.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dia_jax.config import ConfigError
from dia_jax.model import DecoderLayer, DiaModel, EncoderLayer, rope_angles


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What is learnt how much.

    Attributes:
        first_channel_weight: of channel 0, against 1 for each other one. It is drawn first and holds most of the sound,
            and the others follow it; errors there are the ones that are heard. 1 gives `transformers`' loss.
        alignment_weight: of the alignment loss: minus the logarithm of the attention that the layers of
            `alignment_layers` give, in their first head, to the bytes around the one that is being heard. It shows a
            small model from the beginning what reading is; only clips with known times take part.
        alignment_layers: decoder layers, from 0.
        alignment_width: bytes on either side that count as around.
        remat: recompute each layer in the backward pass instead of keeping what it computed.
    """

    first_channel_weight: float = 4.0
    alignment_weight: float = 0.0
    alignment_layers: tuple[int, ...] = ()
    alignment_width: int = 1
    remat: bool = True

    def __post_init__(self):
        if not (math.isfinite(self.first_channel_weight) and self.first_channel_weight > 0):
            raise ConfigError(f"first_channel_weight is {self.first_channel_weight}; it must be a number above 0.")


def forward(
    model: DiaModel, batch: dict[str, jax.Array], settings: LossSettings
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Teacher-forced logits: those of `DiaModel.__call__`, with a hidden script still masked as what it was.

    Args:
        batch: from `data.make_batch`.

    Returns:
        float32 [B, T, C, V]; and for each alignment layer the attention of its first head, float32 [B, T, S].
    """
    maybe_remat: Any = nnx.remat if settings.remat else lambda function: function

    @maybe_remat
    def encode(layer: EncoderLayer, x: jax.Array) -> jax.Array:
        return layer(x, angles, batch["text_mask"][:, None])

    encoder, decoder = model.encoder, model.decoder
    x = encoder.embedding(batch["text"])
    sizes = encoder.config
    angles = rope_angles(jnp.arange(x.shape[1])[None], sizes.head_dim, sizes.rope_theta)
    for layer in encoder.layers:
        x = encode(layer, x)
    encoded = encoder.norm(x)

    tokens = jnp.where(batch["heard"][..., None], batch["grid"][:, :-1], model.config.pad_token_id)
    start = jnp.zeros(len(tokens), jnp.int32)
    mask = batch["text_mask"][:, None]
    cross_key_angles = decoder.cross_angles(jnp.arange(encoded.shape[1])[None])
    positions = jnp.arange(tokens.shape[1])[None]
    self_angles = rope_angles(positions, decoder.config.head_dim, decoder.config.rope_theta)
    cross_angles = decoder.cross_angles(positions)

    @maybe_remat
    def decode(layer: DecoderLayer, x: jax.Array, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        cross = layer.cross_attention.keys_values(encoded, cross_key_angles)
        x, _ = layer.attend_self(x, self_angles, None, start)
        # Of the first head alone, and only looked at: what the layer adds is computed as ever.
        q = layer.cross_queries(x, cross_angles)[:, :, 0]
        scores = jnp.einsum("BTH,BSH->BTS", q, cross.k[:, 0].astype(jnp.float32))
        attention = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min))
        return layer.attend_text(x, cross_angles, (cross, mask)), attention

    x = decoder.embed(tokens)
    attention = {}
    for number, layer in enumerate(decoder.layers):
        x, seen = decode(layer, x, encoded)
        if number in settings.alignment_layers:
            attention[number] = seen
    return decoder.logits(decoder.norm(x)), attention


def loss(
    model: DiaModel, batch: dict[str, jax.Array], settings: LossSettings, alignment_scale: jax.Array | float = 1.0
) -> tuple[jax.Array, dict[str, Any]]:
    """The loss of a batch, and its parts.

    Args:
        batch: from `data.make_batch`.
        alignment_scale: what is left of the alignment loss's weight.

    Returns:
        a scalar in nats: the mean over the learnt slots, weighted by channel; and "channels", the mean of each [C],
        and "alignment".
    """
    logits, attention = forward(model, batch, settings)
    targets, learnt = batch["grid"][:, 1:], batch["learnt"].astype(jnp.float32)
    wanted = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = (jax.nn.logsumexp(logits, axis=-1) - wanted) * learnt
    sums, counts = nats.sum(axis=(0, 1)), learnt.sum(axis=(0, 1))
    weights = jnp.ones(len(sums)).at[0].set(settings.first_channel_weight)
    total = (weights * sums).sum() / jnp.maximum((weights * counts).sum(), 1)
    parts = {"channels": sums / jnp.maximum(counts, 1), "alignment": jnp.float32(0)}
    if settings.alignment_layers:
        distance = jnp.abs(jnp.arange(batch["text"].shape[1]) - batch["byte"][..., None])
        near = (distance <= settings.alignment_width) & batch["text_mask"][:, None]
        # A hidden script shows nothing to look at.
        known = (batch["byte"] >= 0) & (batch["text"][:, :1] != 0)
        missed = [-jnp.log((seen * near).sum(axis=-1) + 1e-6) for seen in attention.values()]
        parts["alignment"] = jnp.stack([(m * known).sum() / jnp.maximum(known.sum(), 1) for m in missed]).mean()
        total = total + settings.alignment_weight * alignment_scale * parts["alignment"]
    return total, parts
