"""Sums over a set, and products with curvature, against dense matrices in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxunlearn as ju
from jaxunlearn.core.types import Needs
from jaxunlearn.training.curvature import (
    CURVATURES,
    curvature_product,
    losses_of,
    mean_gradient,
    mean_over,
    solve_damped,
)
from jaxunlearn.training.descent import cross_entropies
from jaxunlearn.training.edit import edit
from tests import toy

COUNT = 7


@pytest.fixture
def case():
    """A small network of three classes in float64, and a set with padding behind 7 examples."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        rng = np.random.default_rng(0)
        shapes = {"w1": (4, 3), "b": (3,), "w2": (3, 3)}
        variables = {"params": {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}}
        x, y = rng.normal(size=(12, 4)), rng.integers(0, 3, 12).astype(np.int32)
        part = toy.exact_subset(x, y, COUNT)

        def apply(variables, x):
            p = variables["params"]
            return jnp.tanh(x @ p["w1"] + p["b"][None]) @ p["w2"]

        yield ju.functionalize(apply, sample_input=jnp.zeros((1, 4))), variables, part


def dense(model, variables, part, kind):
    """The matrix itself, of the examples that count."""
    flat, back = ravel_pytree(variables["params"])
    x, y = part.examples.x[:COUNT], part.examples.y[:COUNT]
    logits = lambda p: model.apply({"params": back(p)}, x)  # noqa: E731
    if kind == "hessian":
        return jax.hessian(lambda p: jnp.mean(cross_entropies(logits(p), y)))(flat)
    jacobian = jax.jacobian(logits)(flat)
    p = jax.nn.softmax(logits(flat))
    bend = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    return jnp.einsum("bip,bij,bjq->pq", jacobian, bend, jacobian) / COUNT


@pytest.mark.parametrize("kind", CURVATURES)
@pytest.mark.parametrize("size", [3, 100])
def test_products_are_those_of_the_matrix(case, kind, size):
    model, variables, part = case
    flat, back = ravel_pytree(variables["params"])
    product = curvature_product(kind, model, losses_of(model), variables, part, size)
    matrix = dense(model, variables, part, kind)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=flat.shape))
    found = ravel_pytree(jax.jit(product)(back(direction)))[0]
    np.testing.assert_allclose(found, matrix @ direction, atol=1e-12)
    if kind == "gauss_newton":
        solved = jax.jit(partial(solve_damped, product, damping=0.1, iterations=100))
        wanted = jnp.linalg.solve(matrix + 0.1 * jnp.eye(len(flat)), direction)
        np.testing.assert_allclose(ravel_pytree(solved(back(direction)))[0], wanted, atol=1e-9)


def test_the_gradient_is_that_of_the_mean_over_those_that_count(case):
    model, variables, part = case
    x, y = part.examples.x[:COUNT], part.examples.y[:COUNT]
    wanted = jax.grad(lambda v: jnp.mean(cross_entropies(model.apply(v, x), y)))(variables)
    found = jax.jit(partial(mean_gradient, losses_of(model), chunk=3))(variables, part)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, wanted["params"])


def test_a_set_of_nothing_adds_up_to_nothing(case):
    part = case[2]._replace(size=jnp.int32(0))
    assert mean_over(lambda batch: jnp.sum(batch.weight), part) == 0


class TestEdit:
    def method(self, scale=0.5):
        model = toy.mlp()

        def change(variables, sets, key):
            gradient = mean_gradient(losses_of(model), variables, sets.forget)
            params = jax.tree.map(lambda p, g: p + scale * g, variables["params"], gradient)
            return {**variables, "params": params}

        return edit(change, Needs(forget=True), model=model)

    def test_it_does_no_step(self):
        variables = toy.trained().variables
        outcome = ju.unlearn(self.method(), variables, toy.sets(), jax.random.key(0))
        assert (outcome.steps, outcome.history, outcome.examples) == (0, {}, 50)
        assert not np.array_equal(
            outcome.variables["params"]["fc1"]["kernel"], variables["params"]["fc1"]["kernel"]
        )

    def test_it_takes_no_number_of_steps(self):
        with pytest.raises(ValueError, match="steps: expected None"):
            ju.unlearn(
                self.method(), toy.trained().variables, toy.sets(), jax.random.key(0), steps=3
            )

    def test_its_numbers_can_be_swept(self):
        variables, keys = toy.trained().variables, jax.random.split(jax.random.key(0), 2)
        scales = ju.sweep(self.method, scale=[0.5, 1.0])
        many = ju.unlearn_many(scales, variables, toy.sets(), keys)
        one = ju.unlearn(self.method(1.0), variables, toy.sets(), keys[1])
        np.testing.assert_allclose(
            many.variables["params"]["fc1"]["kernel"][1],
            one.variables["params"]["fc1"]["kernel"],
            atol=1e-6,
        )
