"""Which functions have kinks, read off their traces."""

import jax
import jax.numpy as jnp
import networks
import pytest
from flax import linen
from jax import lax

from jaxunlearn.jaxprs.kinks import has_kinks

X = jnp.ones((2, 4))


def squared(x):
    return jnp.sum(x * x, axis=-1, keepdims=True)


def normed(x):
    norm = linen.LayerNorm()
    return norm.apply(norm.init(jax.random.key(0), x), x)


def repeated(act):
    return lambda x: lax.scan(lambda carry, row: (act(carry + row), carry), x[0], x)[0]


def counted(act):
    return lambda x: lax.while_loop(lambda s: s[1] < 3, lambda s: (act(s[0]), s[1] + 1), (x, 0))[0]


SMOOTH = {
    "softplus": jax.nn.softplus,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": jax.nn.logsumexp,
    "mish": jax.nn.mish,
    "silu": jax.nn.silu,
    "layer norm, its variance bounded": normed,
    "cosine, its norm bounded": lambda x: x / jnp.maximum(jnp.sqrt(squared(x)), 1e-6),
    "log of bounded probabilities": lambda x: jnp.log(jnp.maximum(jax.nn.softmax(x), 1e-7)),
    "a constant mask": lambda x: jnp.where(jnp.arange(4) > 2, x, 0.0),
    "gelu in a scan": repeated(jax.nn.gelu),
    "tanh in a loop": counted(jnp.tanh),
    "what has no gradient": lambda x: x * lax.stop_gradient(jax.nn.relu(x)),
}
KINKED = {
    "relu": jax.nn.relu,
    "relu before a product": lambda x: jax.nn.relu(x) @ x.T,
    "relu below a root": lambda x: jnp.sqrt(1 + jnp.sum(jax.nn.relu(x), axis=1)),
    "leaky relu": jax.nn.leaky_relu,
    "hard swish": jax.nn.hard_swish,
    "abs": lambda x: jnp.sum(jnp.abs(x), axis=1),
    "a choice": lambda x: jnp.where(x > 0, x, 0.0),
    "a gate": lambda x: (x > 0).astype(x.dtype) * x,
    "max-pool": lambda x: linen.max_pool(x[..., None], (2,)),
    "top k": lambda x: lax.top_k(x, 2)[0],
    "what is largest": lambda x: x[:, jnp.argmax(x[0])],
    "relu in a scan": repeated(jax.nn.relu),
    "relu in a loop": counted(jax.nn.relu),
    "a branch": lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    "a branch with relu": lambda x: lax.cond(jnp.array(True), jax.nn.relu, jnp.cos, x),
    "relu computed again": jax.checkpoint(lambda x: jax.nn.relu(x) @ x.T),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth(name):
    assert not has_kinks(lambda _, x: SMOOTH[name](x), None, X)


@pytest.mark.parametrize("name", KINKED)
def test_kinked(name):
    assert has_kinks(lambda _, x: KINKED[name](x), None, X)


def test_what_does_not_move_does_not_count():
    """Kinks in the variables, and in what only integers decide."""

    def fn(variables, x):
        floats, tokens = x
        shown = jnp.where(tokens > 0, floats, 0.0)
        return shown * jax.nn.relu(variables) * jnp.maximum(tokens, 1).astype(shown.dtype)

    assert not has_kinks(fn, X, (X, jnp.ones((2, 4), jnp.int32)))
    assert has_kinks(lambda v, x: jax.nn.relu(fn(v, x)), X, (X, jnp.ones((2, 4), jnp.int32)))


def test_networks():
    smooth = {"mlp_gelu", "gated", "vision_transformer"}
    for name, build in networks.NETWORKS.items():
        assert has_kinks(*build()) is (name not in smooth), name
