"""Teacher-forced cross-entropy over the delayed grid.

Runs the model's layers one by one, so that each can be recomputed in the backward pass (remat) and the attention to the
script can be read out. Knows the model's layers; knows no optimizer and no files.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dia_jax.model import DecoderLayer, DiaModel, EncoderLayer
from dia_jax.ops import precision, rope_angles
from dia_jax.training.settings import LossSettings


def forward(
    model: DiaModel, batch: dict[str, jax.Array], settings: LossSettings
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Computes teacher-forced logits, those of `DiaModel.__call__`.

    A hidden script keeps its mask: its bytes are 0 over the length that it had, as in the unconditional branch of
    guidance.

    Args:
        model: may have adapters.
        batch: see `batches.make_batch`.
        settings: `remat` and `alignment_layers` matter here.

    Returns:
        logits, float32 [B, T, C, V], and for each alignment layer the attention of its first head to the script,
        float32 [B, T, S].
    """
    maybe_remat: Any = nnx.remat if settings.remat else lambda function: function

    @maybe_remat
    def encode(layer: EncoderLayer, x: jax.Array) -> jax.Array:
        return layer(x, angles, batch["text_mask"][:, None])

    encoder, decoder = model.encoder, model.decoder
    x = encoder.embed(batch["text"])
    sizes = encoder.config
    angles = rope_angles(jnp.arange(x.shape[1])[None], sizes.head_dim, sizes.rope_theta)
    for layer in encoder.layers:
        x = encode(layer, x)
    encoded = encoder.norm(x)

    tokens = jnp.where(batch["history_mask"][..., None], batch["grid"][:, :-1], model.config.pad_token_id)
    start = jnp.zeros(len(tokens), jnp.int32)
    mask = batch["text_mask"][:, None]
    cross_key_angles = decoder.cross_angles(jnp.arange(encoded.shape[1])[None])
    positions = jnp.arange(tokens.shape[1])[None]
    self_angles = rope_angles(positions, decoder.config.head_dim, decoder.config.rope_theta)
    cross_angles = decoder.cross_angles(positions)

    @maybe_remat
    def decode(layer: DecoderLayer, x: jax.Array, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        cross = layer.cross_attention.keys_values(encoded, cross_key_angles)
        # Attention is computed again, for the first head alone: the layer does not return its weights. XLA computes
        # what both need once, and nothing of it where it is not used.
        q = layer.cross_queries(x + layer.attend_self(x, self_angles, None, start)[0], cross_angles)[:, :, 0]
        k = cross.k[:, 0].astype(jnp.float32)
        scores = jnp.einsum("BTH,BSH->BTS", q, k, precision=precision(k.dtype))
        attention = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min))
        return layer(x, self_angles, cross_angles, (cross, mask), None, start)[0], attention

    x = decoder.embed(tokens)
    attention = {}
    for index, layer in enumerate(decoder.layers):
        x, weights = decode(layer, x, encoded)
        if index in settings.alignment_layers:
            attention[index] = weights
    return decoder.logits(decoder.norm(x)), attention


def loss(
    model: DiaModel, batch: dict[str, jax.Array], settings: LossSettings, alignment_scale: jax.Array | float = 1.0
) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the loss of a batch.

    Args:
        model: may have adapters.
        batch: see `batches.make_batch`.
        settings: weights of the loss's parts.
        alignment_scale: factor of `settings.alignment_weight`.

    Returns:
        the loss, a scalar in nats: the channel-weighted mean of the cross-entropy over the targets in the loss mask,
        plus the weighted alignment loss; and its parts: "channels", float32 [C], the mean of each channel, and
        "alignment", a scalar.
    """
    logits, attention = forward(model, batch, settings)
    targets, mask = batch["grid"][:, 1:], batch["loss_mask"].astype(jnp.float32)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = (jax.nn.logsumexp(logits, axis=-1) - target_logits) * mask
    sums, counts = nats.sum(axis=(0, 1)), mask.sum(axis=(0, 1))
    weights = jnp.ones(len(sums)).at[0].set(settings.first_channel_weight)
    total = (weights * sums).sum() / jnp.maximum((weights * counts).sum(), 1)
    parts = {"channels": sums / jnp.maximum(counts, 1), "alignment": jnp.float32(0)}
    if settings.alignment_layers:
        distance = jnp.abs(jnp.arange(batch["text"].shape[1]) - batch["spoken_byte"][..., None])
        near = (distance <= settings.alignment_width) & batch["text_mask"][:, None]
        # In a hidden script there is nothing to attend to.
        known = (batch["spoken_byte"] >= 0) & (batch["text"][:, :1] != 0)
        missed = [-jnp.log((weights * near).sum(axis=-1) + 1e-6) for weights in attention.values()]
        parts["alignment"] = jnp.stack([(m * known).sum() / jnp.maximum(known.sum(), 1) for m in missed]).mean()
        total = total + settings.alignment_weight * alignment_scale * parts["alignment"]
    return total, parts
