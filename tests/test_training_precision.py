"""float32 means float32: GPUs and TPUs multiply it in fewer bits unless a product asks for the highest precision."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dia_jax.config import DacConfig
from dia_jax.training.codec import CodecState, make_transform, update
from dia_jax.training.lora import add_lora
from dia_jax.training.loss import loss
from dia_jax.training.settings import CodecSettings, LossSettings
from dia_jax.untrained import SMALL_DIA, random_params

HIGHEST = jax.lax.Precision.HIGHEST


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr and of all programs in it."""

    def is_jaxpr(value: Any) -> bool:
        return hasattr(value, "jaxpr") or hasattr(value, "eqns")

    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from equations(value)


def precisions(jaxpr: Any) -> list[jax.lax.Precision | None]:
    """The precision of the operands of each float32 product and convolution."""
    found = []
    for equation in equations(jaxpr):
        is_product = equation.primitive.name in ("dot_general", "conv_general_dilated")
        if is_product and all(operand.aval.dtype == jnp.float32 for operand in equation.invars):
            precision = equation.params["precision"]
            found += precision if isinstance(precision, tuple) else [precision] * 2
    return found


def test_a_product_without_precision_is_found():
    """In subprograms and in the backward pass too: one product and its two gradients."""
    x = jnp.ones((2, 2))
    assert precisions(jax.make_jaxpr(jax.jit(jax.grad(lambda x: (x @ x).sum())))(x)) == [None] * 6
    assert precisions(jax.make_jaxpr(lambda x: jnp.matmul(x, x, precision=HIGHEST))(x)) == [HIGHEST] * 2


@pytest.mark.parametrize("rank", [0, 4])
def test_the_loss_and_its_gradients(rank):
    """With the alignment loss; with adapters, too."""
    model = nnx.merge(*random_params(SMALL_DIA))
    if rank:
        add_lora(model, rank=rank, alpha=8.0)
    graphdef, params = nnx.split(model)
    batch = {
        "text": np.ones((1, 8), np.int32),
        "text_mask": np.ones((1, 8), bool),
        "grid": np.zeros((1, 17, 9), np.int32),
        "history_mask": np.ones((1, 16), bool),
        "loss_mask": np.ones((1, 16, 9), bool),
        "spoken_byte": np.zeros((1, 16), np.int32),
    }
    settings = LossSettings(alignment_weight=1.0, alignment_layers=(0, 1))

    def value(params: nnx.State) -> jax.Array:
        return loss(nnx.merge(graphdef, params), batch, settings)[0]

    found = precisions(jax.make_jaxpr(jax.value_and_grad(value))(params))
    assert len(found) > 100
    assert set(found) == {HIGHEST}


def test_an_update_of_the_codec():
    config = DacConfig(strides=(2, 4), encoder_size=4, decoder_size=16, num_codebooks=3, codebook_size=32)
    graphdef, params = random_params(config)
    settings = CodecSettings(clips=1, frames=256)
    transform = make_transform(settings)
    state = CodecState(jnp.int32(0), params, transform.init(params), jnp.ones((3, 32)))
    samples = jnp.zeros((1, 2048))
    traced = jax.make_jaxpr(lambda state, samples: update(graphdef, transform, settings, state, samples))
    found = precisions(traced(state, samples))
    assert len(found) > 100
    assert set(found) == {HIGHEST}
