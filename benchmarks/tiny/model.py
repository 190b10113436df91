"""The small Dia: its sizes, its settings, and the weights that it begins with. Knows no training."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dia_jax import DecoderConfig, DiaConfig, EncoderConfig, SamplingSettings
from dia_jax.config import SpeechSettings
from dia_jax.training.weights import random_weights

CONFIG = DiaConfig(
    # Spelling is the harder part, and there are six frames to a byte: the encoder may be large.
    encoder=EncoderConfig(num_layers=5, hidden_size=256, mlp_size=512, num_heads=4, num_kv_heads=4, head_dim=64),
    decoder=DecoderConfig(
        num_layers=6,
        hidden_size=192,
        mlp_size=576,
        num_heads=3,
        num_kv_heads=3,
        head_dim=64,
        cross_num_heads=3,
        cross_num_kv_heads=3,
        cross_head_dim=64,
    ),
    # Of 0.1 to 1.2, where whisper missed the fewest words of ten scripts; on common words 0.3 is as good.
    sampling=SamplingSettings(cfg_scale=1.5, temperature=0.9, top_p=0.9, cfg_filter_top_k=45),
    # A tag is a voice, and an end needs no tag behind it. The heads are those that the alignment loss trains.
    speech=SpeechSettings(
        chunk_seconds=(4.0, 12.0),
        steady_seconds=20.0,
        closing_tag=False,
        tag_voices=True,
        alignment_heads=((1, 0), (2, 0), (3, 0)),
    ),
)


def initial(codec: dict[str, np.ndarray]) -> nnx.State:
    """Random weights, in which a codec's tokens lie as the entries of its codebooks do.

    Each channel has eight directions of its own, one of them constant. A token's vector is its entry in the other
    seven, those in which the entries vary most (the last dimension of these codebooks is constant), and so is its row
    of the last kernel, less half its square along the constant one. So before anything is learnt, what sounded last is
    likeliest, codes that sound alike are nearly as likely, and all of them learn from each.

    Args:
        codec: the codec's parameters by path.
    """
    channels, vocab, size = CONFIG.decoder.num_channels, CONFIG.decoder.vocab_size, CONFIG.decoder.hidden_size
    length = 0.02 * size**0.5  # of a vector, as the random ones have it
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((size, 8 * channels)))[0].T.reshape(channels, 8, size)
    inputs, outputs = rng.normal(0, 0.005, (2, channels, vocab, size))
    for channel, own in enumerate(directions):
        entries = codec[f"quantizer.quantizers.{channel}.codebook"][:, -8:-1]
        entries = entries - entries.mean(axis=0)
        entries /= np.sqrt(np.mean(np.sum(entries**2, axis=1)))
        inputs[channel, : len(entries)] += length * entries @ own[:7]
        inputs[channel] += length * own[7]
        outputs[channel, : len(entries)] += entries @ own[:7]
        outputs[channel, : len(entries)] -= np.sum(entries**2, axis=1)[:, None] / 2 * own[7]
        outputs[channel, len(entries) :] -= own[7]
    weights = random_weights(CONFIG, 0, "float32")
    # Large, or what the layers add about a byte's place drowns what byte it is.
    letters = weights["encoder"]["embedding"]["embedding"]
    letters[...] = letters[...] / 0.02
    weights["decoder"]["embeddings"]["embedding"][...] = jnp.asarray(inputs.reshape(-1, size), jnp.float32)
    weights["decoder"]["logits_dense"]["weight"][...] = jnp.asarray(outputs.reshape(-1, size), jnp.float32)
    return weights
