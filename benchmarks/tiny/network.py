"""The small voice's loss, as an accelerator computes it fastest, and the batches of it, laid out on the device.

The same function of the same weights as `dia_jax.training.loss` (tests compare them), but that activations are in the
compute dtype, embeddings are learnt by products in place of scatters, and codes are looked up in a table of words.
Weights are a dictionary by path: "decoder.layers.0.mlp.wo.weight". Knows no optimizer, files or words.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dia_jax.config import DiaConfig
from dia_jax.ops import apply_rope, rope_angles

HISTORY_SPAN = 32
"""Consecutive positions that history dropout hides together: a third of a second, about a word."""
FIRST_CHANNEL_WEIGHT = 4.0
ALIGNMENT_LAYERS = (1, 2, 3)
FRAMES_PER_BYTE = 6
BEGINNING = 10.0
"""Weight of the first three bytes behind a prompt: they decide whose voice goes on, later ones need not look back."""

Weights = dict[str, jax.Array]


def linear(x: jax.Array, weight: jax.Array, dtype: Any = None) -> jax.Array:
    """[..., in] and [*out, in] -> [..., *out]."""
    contract = (((x.ndim - 1,), (weight.ndim - 1,)), ((), ()))
    return jax.lax.dot_general(x, weight, contract, preferred_element_type=dtype or x.dtype)


def norm(x: jax.Array, scale: jax.Array, epsilon: float, dtype: Any) -> jax.Array:
    mean = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean + epsilon) * scale).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed(table: jax.Array, tokens: jax.Array, vocab: int) -> jax.Array:
    """[C * V, D] and int [..., C] -> float32 [..., D], the sum over the channels."""
    return table[tokens + jnp.arange(tokens.shape[-1]) * vocab].astype(jnp.float32).sum(axis=-2)


def _embed_forward(table: jax.Array, tokens: jax.Array, vocab: int) -> tuple[jax.Array, Any]:
    return embed(table, tokens, vocab), (tokens, jnp.zeros((), table.dtype))


def _embed_backward(vocab: int, saved: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    tokens, like = saved
    flat = gradient.reshape(-1, gradient.shape[-1]).astype(like.dtype)
    ids = tokens.reshape(-1, tokens.shape[-1])

    def of_channel(channel: jax.Array) -> jax.Array:
        one_hot = (channel[None] == jnp.arange(vocab)[:, None]).astype(like.dtype)
        return jnp.dot(one_hot, flat, preferred_element_type=jnp.float32)

    parts = [of_channel(ids[:, channel]) for channel in range(ids.shape[1])]
    return jnp.concatenate(parts).astype(like.dtype), None


embed.defvjp(_embed_forward, _embed_backward)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention with factor 1: [B, T, N, H], twice [B, S, K, H] and a mask [B or 1, T or 1, S].

    Returns:
        [B, T, N * H], and the first head's weights, float32 [B, T, S].
    """
    batch, time, heads, size = q.shape
    q = q.reshape(batch, time, k.shape[2], -1, size)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30))
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(v.dtype), v)
    return out.reshape(batch, time, heads * size), weights[:, 0, 0]


def attend_causally(q: jax.Array, k: jax.Array, v: jax.Array, flash: bool) -> jax.Array:
    if flash:
        out = jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=True, implementation="cudnn")
        return out.reshape(*q.shape[:2], -1)
    return attend(q, k, v, jnp.tril(jnp.ones((1, q.shape[1], q.shape[1]), bool)))[0]


def stacked(weights: Weights, path: str, layers: int) -> Weights:
    """The weights of all layers by their names inside of one, [L, ...]: one layer is compiled, and run L times."""
    names = [name.removeprefix(f"{path}.0.") for name in weights if name.startswith(f"{path}.0.")]
    return {name: jnp.stack([weights[f"{path}.{layer}.{name}"] for layer in range(layers)]) for name in names}


def forward(
    weights: Weights, batch: dict[str, jax.Array], config: DiaConfig, *, flash: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Teacher-forced logits, float32 [B, T, C, V]; and of each decoder layer's first head, in the positions whose byte
    is known, the mean negative logarithm of the attention to it, and how often it is attended to most, float32 [L]."""
    enc, dec = config.encoder, config.decoder
    dtype = weights["decoder.logits_dense.weight"].dtype
    near = (jnp.arange(batch["text"].shape[1]) == batch["spoken_byte"][..., None]) & batch["text_mask"][:, None]
    # In a hidden script there is nothing to attend to.
    known = (batch["spoken_byte"] >= 0) & (batch["text"][:, :1] != 0)
    share = jnp.maximum(known.sum(), 1)
    mask = batch["text_mask"][:, None]

    def turned(x: jax.Array, angles: Any) -> jax.Array:
        return apply_rope(x.astype(jnp.float32), angles).astype(dtype)

    def heads(x: jax.Array, weight: jax.Array, head_dim: int) -> jax.Array:
        return linear(x, weight).reshape(*x.shape[:2], -1, head_dim)

    def mlp(x: jax.Array, layer: Weights) -> jax.Array:
        both = linear(x, layer["mlp.wi_fused.weight"])
        return linear(jax.nn.silu(both[..., 0, :]) * both[..., 1, :], layer["mlp.wo.weight"])

    def encode(x: jax.Array, layer: Weights) -> tuple[jax.Array, None]:
        h = norm(x, layer["pre_sa_norm.scale"], enc.norm_eps, dtype)
        q, k, v = (heads(h, layer[f"self_attention.{name}_proj.weight"], enc.head_dim) for name in "qkv")
        out = attend(turned(q, encoder_angles), turned(k, encoder_angles), v, mask)[0]
        x = x + linear(out, layer["self_attention.o_proj.weight"])
        return x + mlp(norm(x, layer["post_sa_norm.scale"], enc.norm_eps, dtype), layer), None

    def decode(x: jax.Array, layer: Weights) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        h = norm(x, layer["pre_sa_norm.scale"], dec.norm_eps, dtype)
        q, k, v = (heads(h, layer[f"self_attention.{name}_proj.weight"], dec.head_dim) for name in "qkv")
        out = attend_causally(turned(q, decoder_angles), turned(k, decoder_angles), v, flash)
        x = x + linear(out, layer["self_attention.o_proj.weight"])
        h = norm(x, layer["pre_ca_norm.scale"], dec.norm_eps, dtype)
        q = heads(h, layer["cross_attention.q_proj.weight"], dec.cross_head_dim)
        k, v = (heads(encoded, layer[f"cross_attention.{name}_proj.weight"], dec.cross_head_dim) for name in "kv")
        out, first = attend(q, k, v, mask)
        x = x + linear(out, layer["cross_attention.o_proj.weight"])
        x = x + mlp(norm(x, layer["pre_mlp_norm.scale"], dec.norm_eps, dtype), layer)
        missed = (-jnp.log((first * near).sum(axis=-1) + 1e-6) * known).sum() / share
        found = ((first.argmax(axis=-1) == batch["spoken_byte"]) & known).sum() / share
        return x, (missed, found)

    x = embed(weights["encoder.embedding.embedding"], batch["text"][..., None], enc.vocab_size)
    encoder_angles = rope_angles(jnp.arange(x.shape[1])[None], enc.head_dim, enc.rope_theta)
    x, _ = jax.lax.scan(encode, x, stacked(weights, "encoder.layers", enc.num_layers))
    encoded = norm(x, weights["encoder.norm.scale"], enc.norm_eps, dtype)

    tokens = jnp.where(batch["history_mask"][..., None], batch["history"], config.pad_token_id)
    x = embed(weights["decoder.embeddings.embedding"], tokens, dec.vocab_size)
    decoder_angles = rope_angles(jnp.arange(x.shape[1])[None], dec.head_dim, dec.rope_theta)
    x, (missed, found) = jax.lax.scan(decode, x, stacked(weights, "decoder.layers", dec.num_layers))
    x = norm(x, weights["decoder.norm.scale"], dec.norm_eps, dtype)
    logits = linear(x, weights["decoder.logits_dense.weight"], jnp.float32)
    return logits.reshape(*logits.shape[:-1], dec.num_channels, dec.vocab_size), missed, found


def lay_out(rows: dict[str, jax.Array], table: jax.Array, length: int, config: DiaConfig) -> dict[str, jax.Array]:
    """Rows of `compose.Composer` as `dia_jax.training.batches.make_batch` would lay them out.

    The loss mask is float, and `BEGINNING` where a turn behind a prompt begins.

    Args:
        rows: text uint8 [B, S], chunks int32 [B, S], prompt int32 [B].
        table: codes of a chunk, [N, 6, C].
        length: T.
        config: of the model.
    """
    text = rows["text"].astype(jnp.int32)
    count = (text != 0).sum(axis=1)
    frames = FRAMES_PER_BYTE * (count + 1)[:, None]
    codes = table[rows["chunks"]].astype(jnp.int32)
    codes = codes.reshape(len(text), -1, codes.shape[-1])
    pad = max(length + 1 - codes.shape[1], 0)
    codes = jnp.pad(codes, ((0, 0), (0, pad), (0, 0)))[:, : length + 1]
    frame = jnp.arange(length + 1)[None]
    codes = jnp.where((frame < frames)[..., None], codes, config.pad_token_id)
    codes = jnp.where((frame == frames)[..., None], config.eos_token_id, codes)
    columns = []
    for channel, delay in enumerate(config.delay_pattern):
        begin = jnp.full((len(text), 1 + delay), config.bos_token_id)
        columns.append(jnp.concatenate([begin, codes[:, : length - delay, channel]], axis=1))
    of_target = jnp.arange(length)[:, None] - jnp.asarray(config.delay_pattern)
    prompt = FRAMES_PER_BYTE * rows["prompt"][:, None, None]
    begins = (prompt > 0) & (of_target < prompt + 3 * FRAMES_PER_BYTE)
    position = jnp.arange(length)[None]
    spoken = jnp.minimum(position // FRAMES_PER_BYTE, count[:, None] - 1)
    grid = jnp.stack(columns, axis=-1)
    return {
        "text": text,
        "text_mask": text != 0,
        "grid": grid,
        "history": grid[:, :-1],
        "history_mask": jnp.ones((len(text), length), bool),
        "loss_mask": ((of_target >= prompt) & (of_target <= frames[..., None])) * jnp.where(begins, BEGINNING, 1.0),
        "spoken_byte": jnp.where(position < frames, spoken, -1),
    }


def hide(
    batch: dict[str, jax.Array], prompt: jax.Array, key: jax.Array, *, text: float, history: jax.Array, longest: int
) -> dict[str, jax.Array]:
    """Hides scripts, and spans of what was said before; a prompt is always seen as a whole.

    Behind a quarter of the prompts all is hidden: what was just said tells whose voice it is, and the prompt would not
    be heard.
    """
    keys = jax.random.split(key, 5)
    rows, length = batch["history_mask"].shape
    hidden = jax.random.uniform(keys[0], (rows, 1)) < text
    rates = jax.random.uniform(keys[1], (rows, 1)) * 2 * history
    alone = (prompt[:, None] > 0) & (jax.random.uniform(keys[4], (rows, 1)) < 0.25)
    rates = jnp.where(alone, 1, rates)
    spans = jax.random.uniform(keys[2], (rows, length // HISTORY_SPAN + 2)) >= rates
    offsets = jax.random.randint(keys[3], (rows, 1), 0, HISTORY_SPAN)
    position = jnp.arange(length)[None]
    seen = jnp.take_along_axis(spans, (position + offsets) // HISTORY_SPAN, axis=1)
    ends = jnp.where(prompt > 0, FRAMES_PER_BYTE * prompt + longest, 0)[:, None]
    return batch | {"text": jnp.where(hidden, 0, batch["text"]), "history_mask": seen | (position <= ends)}


def misremember(
    weights: Weights, batch: dict[str, jax.Array], config: DiaConfig, prompt: jax.Array, key: jax.Array, share: float
) -> dict[str, jax.Array]:
    """Puts the model's own samples into the history, token by token, as they stand there when it speaks.

    They are drawn in one pass, given the true history (Mihaylova and Martins, 2019). Without this it has seen no
    mistakes, and half of a clip's finer codes are others than the teacher's: it ends clips where they are many.

    Args:
        weights, batch, config: see `forward`.
        prompt: bytes of each row's prompt, int32 [B]; it stays as it is.
        key: of what is drawn.
        share: of the tokens in the mean; rows differ.
    """
    logits = forward(weights, batch, config)[0]
    keys = jax.random.split(key, 3)
    # One noise for all rows and channels, for speed.
    noise = jax.random.gumbel(keys[0], (logits.shape[1], 1, config.eos_token_id))
    samples = (logits[..., : config.eos_token_id] + noise).argmax(axis=-1)[:, :-1]
    history = batch["history"]
    rates = jax.random.uniform(keys[1], (len(history), 1, 1)) * 2 * share
    chosen = jax.random.uniform(keys[2], samples.shape) < rates
    ends = (FRAMES_PER_BYTE * prompt + max(config.delay_pattern))[:, None, None]
    own = (jnp.arange(samples.shape[1])[:, None] >= ends) & (history[:, 1:] < config.eos_token_id)
    mixed = jnp.where(chosen & own, samples, history[:, 1:])
    return batch | {"history": jnp.concatenate([history[:, :1], mixed], axis=1)}


def loss(
    weights: Weights,
    batch: dict[str, jax.Array],
    config: DiaConfig,
    alignment_weight: jax.Array | float,
    *,
    flash: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and its parts, as `dia_jax.training.loss.loss`; and how often the spoken byte is attended to most."""
    logits, missed, found = forward(weights, batch, config, flash=flash)
    targets, mask = batch["grid"][:, 1:], batch["loss_mask"].astype(jnp.float32)
    chosen = jnp.where(targets[..., None] == jnp.arange(logits.shape[-1]), logits, 0).sum(axis=-1)
    nats = (jax.nn.logsumexp(logits, axis=-1) - chosen) * mask
    sums, counts = nats.sum(axis=(0, 1)), mask.sum(axis=(0, 1))
    each = jnp.ones(len(sums)).at[0].set(FIRST_CHANNEL_WEIGHT)
    total = (each * sums).sum() / jnp.maximum((each * counts).sum(), 1)
    alignment = missed[jnp.asarray(ALIGNMENT_LAYERS)].mean()
    parts = {"channels": sums / jnp.maximum(counts, 1), "alignment": alignment, "found": found.max()}
    return total + alignment_weight * alignment, parts
