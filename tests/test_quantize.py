"""int8 kernels: the products, the checkpoint, and how little the logits stray."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dia_jax import CheckpointError, Dia, DiaModel, convert, load_params, open_checkpoint, save_params
from dia_jax.model import Linear
from dia_jax.ops import KV, attend_with_cache, quantize_kernel
from dia_jax.untrained import SMALL_DIA, random_params


def test_a_kernel_is_rounded_to_half_a_step():
    weight = np.random.default_rng(0).standard_normal((50, 70)).astype(np.float32)
    weight[3] = 0
    kernel, scale = quantize_kernel(weight)
    assert kernel.dtype == np.int8
    assert (np.abs(kernel).max(axis=1)[np.arange(50) != 3] == 127).all()
    assert (np.abs(kernel * scale[:, None] - weight) <= scale[:, None] * 0.5001).all()
    jitted = jax.jit(quantize_kernel)(weight)
    assert (np.abs(np.asarray(jitted[0], int) - kernel) <= 1).all()  # a tie may fall otherwise


@pytest.mark.parametrize("platform_branch", ["cpu", "default"])
def test_the_product_is_that_of_the_rounded_kernel(platform_branch: str, monkeypatch: pytest.MonkeyPatch):
    """Both ways of computing it, the CPU's with int8 rows and the accelerators', agree with float64."""

    def choose(*args, **branches):
        return branches[platform_branch](*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    linear = Linear(64, 48, dtype=jnp.float32, rngs=nnx.Rngs(0))
    linear.quantize()
    x = jax.random.normal(jax.random.key(1), (2, 5, 64)) * jnp.array([1e-3, 1.0, 30.0, 0.0, 5.0])[:, None]
    exact = (
        np.asarray(x, np.float64)
        @ (np.asarray(linear.weight[...], np.float64) * np.asarray(linear.scale[...], np.float64)[:, None]).T
    )
    out = np.asarray(linear(x))
    size = np.abs(exact).max(axis=-1, keepdims=True)
    assert (np.abs(out - exact) <= 1e-4 * size + 1e-30).all()
    assert out.dtype == np.float32


@pytest.mark.parametrize("platform", ["cuda", "default"])
def test_every_backend_attends_and_writes_alike(platform: str, monkeypatch: pytest.MonkeyPatch):
    """The accelerators' order of attention and cache update, and their ways to write, give what the CPU's do."""
    dependent = jax.lax.platform_dependent

    def choose(*args, **branches):
        return branches[platform](*args) if platform in branches else dependent(*args, **branches)

    lanes, heads, kv_heads, size, head_dim = 3, 4, 2, 16, 8
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def kv(length: int) -> KV:
        return KV(*(jax.random.normal(next(keys), (lanes, kv_heads, length, head_dim)) for _ in range(2)))

    for time in (1, 4):
        q, cache, new = jax.random.normal(next(keys), (lanes, time, heads, head_dim)), kv(size), kv(time)
        start = jnp.array([0, 5, size - time])
        a, cache_a = attend_with_cache(q, cache, new, start)
        with monkeypatch.context() as patch:
            patch.setattr(jax.lax, "platform_dependent", choose)
            b, cache_b = attend_with_cache(q, cache, new, start)
        np.testing.assert_allclose(a, b, atol=2e-6)
        jax.tree.map(np.testing.assert_array_equal, cache_a, cache_b)
        keys = iter(jax.random.split(jax.random.key(1), 8))


def test_an_int8_checkpoint_is_what_rounding_on_load_gives(small, tmp_path):
    convert(small, tmp_path / "int8", quantize="int8", verify=True)
    checkpoint = open_checkpoint(tmp_path / "int8")
    assert checkpoint.quantize == "int8"
    full = sum(tensor.nbytes for tensor in open_checkpoint(small).tensors.values())
    embeddings = sum(t.nbytes for name, t in checkpoint.tensors.items() if "embedding" in name)
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) - embeddings < 0.27 * (full - embeddings)

    stored = Dia.from_pretrained(tmp_path / "int8", load_codec=False)
    rounded = Dia.from_pretrained(small, load_codec=False, quantize="int8")
    assert stored.graphdef == rounded.graphdef
    jax.tree.map(np.testing.assert_array_equal, stored.params, rounded.params)
    model = nnx.merge(*load_params(open_checkpoint(small)))
    model.quantize()
    own = nnx.split(model)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1), own, stored.params)

    save_params(tmp_path / "again", stored.config, stored.params)
    jax.tree.map(np.testing.assert_array_equal, load_params(open_checkpoint(tmp_path / "again"))[1], stored.params)
    codes = stored.generate_codes("[S1] Hi. [S2]", max_tokens=12, seed=0)
    np.testing.assert_array_equal(codes, rounded.generate_codes("[S1] Hi. [S2]", max_tokens=12, seed=0))


@pytest.mark.parametrize("layout", ["transformers", "reference"])
def test_other_layouts_hold_no_int8(small, tmp_path, layout: str):
    with pytest.raises(CheckpointError, match="orbax"):
        convert(small, tmp_path / "x", layout=layout, quantize="int8")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_logits_stray_little(dtype: str):
    graphdef, params = random_params(SMALL_DIA)
    exact_model = nnx.merge(graphdef, params)
    rounded = DiaModel(SMALL_DIA, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    target = nnx.to_flat_state(nnx.split(rounded)[1])
    values = dict(nnx.to_flat_state(params))
    nnx.update(
        rounded, nnx.from_flat_state([(path, v.replace(values[path][...].astype(v.dtype))) for path, v in target])
    )
    rounded.quantize()
    text = np.full((1, 20), 65, np.int32)
    grid = np.random.default_rng(0).integers(0, 1024, (1, 40, 9))
    exact, other = (np.asarray(jax.jit(model)(text, grid)) for model in (exact_model, rounded))
    error = np.abs(exact - other).mean() / exact.std()
    assert 1e-4 < error < 0.03  # rounded, but not far
