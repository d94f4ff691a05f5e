"""Gradients of each example, beside a loop of batches of one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.core.types import Batch
from jaxunlearn.data.examples import fetch
from jaxunlearn.training import cross_entropy
from jaxunlearn.training import per_example as module
from jaxunlearn.training.descent import trained, with_trained
from jaxunlearn.training.per_example import mean_importance, per_example_gradients
from tests import toy


def shared(variables, x):
    """A kernel that is used twice, one that is transposed, a product and a table by hand."""
    p = variables["params"]
    hidden = jnp.tanh(x.reshape(len(x), -1) @ p["in"])
    hidden = jax.jit(lambda h: jnp.tanh(h @ p["mix"]) @ p["mix"])(hidden) * p["scale"]
    return jnp.einsum("kn,bn->bk", p["out"], hidden) + p["bias"]


def shared_variables():
    draw = iter(jax.random.split(jax.random.key(1), 4))
    shapes = {"in": (36, 5), "mix": (5, 5), "out": (4, 5)}
    params = {name: jax.random.normal(next(draw), shape) / 3 for name, shape in shapes.items()}
    return {
        "params": {**params, "scale": jnp.ones((1, 5)), "bias": jnp.zeros((1, 4))},
        "other": jnp.ones(2),
    }


def cnn():
    return ju.models.build("cnn", toy.SHAPE, toy.NUM_CLASSES, {"channels": (3, 4), "features": 8})


NETWORKS = {
    "mlp": lambda: (toy.mlp().apply, toy.trained().variables),
    "cnn": lambda: (cnn().apply, cnn().init(jax.random.key(0))),
    "shared": lambda: (shared, shared_variables()),
}


@functools.cache
def case(name):
    """The loss, variables, a subset in an order of its own, and the gradients of a loop."""
    apply, variables = NETWORKS[name]()

    def loss(variables, batch):
        assert batch.x.shape == (1, *toy.SHAPE)
        return cross_entropy(apply(variables, batch.x), batch.y, batch.weight)

    part = toy.sets().forget
    part = part._replace(indices=part.indices[::-1][:11], size=jnp.int32(11))

    @jax.jit
    def gradient(position):
        at = part.indices[position][None]
        one = Batch(fetch(part.examples, at), part.examples.y[at], jnp.ones(1), jnp.zeros(1, int))
        return jax.grad(lambda p: loss(with_trained(variables, p), one))(trained(variables))

    each = [gradient(n) for n in range(11)]
    return loss, variables, part, jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def near(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert own.shape == other.shape
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_reductions_are_those_of_a_loop(name, chunk):
    loss, variables, part, each = case(name)
    near(per_example_gradients(loss, variables, part, chunk=chunk), each)
    for reduce, function in (("mean_square", np.square), ("mean_abs", np.abs)):
        means = jax.tree.map(lambda leaf, f=function: np.mean(f(leaf), axis=0), each)
        near(per_example_gradients(loss, variables, part, reduce=reduce, chunk=chunk), means)
        inside = jax.jit(functools.partial(mean_importance, loss, reduce=reduce, chunk=chunk))
        near(inside(variables, part), means)
    norms = np.sqrt(sum(np.square(g).reshape(11, -1).sum(1) for g in jax.tree.leaves(each)))
    near(per_example_gradients(loss, variables, part, reduce="norm", chunk=chunk), norms)


def test_kernels_of_dense_layers_are_found_to_be_of_rank_one(monkeypatch):
    told = {}
    real = module._REDUCE["mean_square"]
    for name in NETWORKS:
        count = told.setdefault(name, [])
        spy = lambda arrays, weight, source, count=count: (  # noqa: E731
            count.append(source is not None),
            real(arrays, weight, source),
        )[1]
        monkeypatch.setitem(module._REDUCE, "mean_square", spy)
        loss, variables, part, _ = case(name)
        per_example_gradients(lambda *a, loss=loss: loss(*a), variables, part, reduce="mean_square")
    assert {name: sum(own) for name, own in told.items()} == {"mlp": 3, "cnn": 2, "shared": 2}


def test_a_second_call_compiles_nothing():
    loss, variables, part, _ = case("mlp")
    per_example_gradients(loss, variables, part, reduce="norm", chunk=4)
    before = module._further._cache_size()
    per_example_gradients(loss, variables, part, reduce="norm", chunk=4)
    assert module._further._cache_size() == before


def test_mistakes_are_told():
    loss, variables, part, _ = case("mlp")
    for options, message in (
        ({"reduce": "square"}, "reduce: expected one of .*'mean_square'.*, got 'square'"),
        ({"chunk": 0}, "chunk: expected a positive number, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            per_example_gradients(loss, variables, part, **options)
    with pytest.raises(ValueError, match="part: expected at least one example, got none"):
        per_example_gradients(loss, variables, part._replace(size=jnp.int32(0)))
