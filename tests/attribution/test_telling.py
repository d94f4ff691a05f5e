"""A map that shows nothing says so: in the result and on the picture."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import pictures
from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.lrp import rules
from jaxunlearn.pictures import style


def swallowed(v, x):
    """A bias a thousand times the contributions takes nearly everything."""
    return x.reshape(x.shape[0], -1) @ v["w"] + 5000.0


def cancelled(v, x):
    """Contributions that cancel to nearly nothing."""
    h = x.reshape(x.shape[0], -1)[:, :2] + 0.0
    return jnp.stack([(h * jnp.array([[1.0, -1.0]])).sum(1) + 1e-5, h[:, 0] * 0], axis=1)


def sound(v, x):
    return x.reshape(x.shape[0], -1) @ v["w"]


@pytest.fixture
def weights():
    return {"w": jnp.ones((4, 2))}


IMAGES = jnp.asarray([[[0.5, 0.5], [0.3, 0.2]], [[0.7, 0.7], [0.1, 0.9]]])


@pytest.mark.parametrize("net", [swallowed, cancelled])
def test_a_map_that_shows_nothing_says_so(net, weights, tmp_path, monkeypatch):
    r = lrp(net, rules.epsilon(1e-12), eps=1e-12)(weights, IMAGES, starts.label(0))
    np.testing.assert_array_equal(r.telling, [False, False])
    jitted = jax.jit(lrp(net, rules.epsilon(1e-12), eps=1e-12))(weights, IMAGES, starts.label(0))
    np.testing.assert_array_equal(jitted.telling, [False, False])
    said = []
    text = style.Page.text
    monkeypatch.setattr(
        style.Page, "text", lambda page, *a, **k: (said.extend(a), text(page, *a, **k))
    )
    pictures.save_heatmaps(tmp_path / "maps.png", IMAGES, jitted)
    assert sum("shows nothing" in str(words) for words in said) == 2


def test_a_map_that_shows_something_says_nothing(weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r = lrp(sound)(weights, IMAGES, starts.label(0))
        margin = lrp(sound)({"w": jnp.array([[1.0, 0], [0, 1], [1, 1], [0, 2]])}, IMAGES,
                            starts.margin(0))  # fmt: skip
    np.testing.assert_array_equal(r.telling, [True, True])
    np.testing.assert_allclose(r.arrived, 1, rtol=1e-5)
    np.testing.assert_array_equal(margin.telling, [True, True])
