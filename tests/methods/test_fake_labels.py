"""Every fake label against its definition, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxunlearn.methods.cascade.steps import FAKE_LABELS, fake_label_loss

D = np.array([2.0, -1.0, 0.5, 3.0], np.float32)
HELD = np.array([-0.5, 1.5, 0.0, 1.0, 2.5, -2.0], np.float32)
ONES = jnp.ones(4)


def bce(logits, target):
    p = expit(logits.astype(np.float64))
    return np.mean(-target * np.log(p) - (1 - target) * np.log(1 - p))


def loss(name, logits=D, weight=ONES, **options):
    return float(fake_label_loss(name, jnp.asarray(logits), weight, jnp.asarray(HELD), **options))


def test_zero_is_the_loss_of_a_generated_image():
    assert loss("zero") == pytest.approx(bce(D, 0.0), rel=1e-5)


def test_soft_is_cross_entropy_with_a_constant():
    assert loss("soft", soft=0.3) == pytest.approx(bce(D, 0.3), rel=1e-5)


def test_mean_takes_the_mean_probability_of_the_holdout():
    assert loss("holdout_mean") == pytest.approx(bce(D, expit(HELD).mean()), rel=1e-5)


def test_quantile_pairs_ranks():
    """The largest logit gets the largest quantile, and so on."""
    ranks = np.array([2, 0, 1, 3])
    targets = np.quantile(expit(HELD.astype(np.float64)), (ranks + 0.5) / 4, method="hazen")
    assert loss("holdout_quantile") == pytest.approx(bce(D, targets), rel=1e-5)


def test_logit_mse_is_the_square_to_the_mean_logit():
    assert loss("holdout_logit_mse") == pytest.approx(np.mean((D - HELD.mean()) ** 2), rel=1e-5)


@pytest.mark.parametrize("name", FAKE_LABELS)
def test_padding_does_not_count(name):
    if name == "holdout_quantile":
        pytest.skip("ranks are those within the batch, whatever its weights")
    weight = jnp.asarray([1.0, 1.0, 0.0, 0.0])
    assert loss(name, weight=weight) == pytest.approx(
        loss(name, logits=D[:2], weight=jnp.ones(2)), rel=1e-5
    )


@pytest.mark.parametrize("name", FAKE_LABELS[2:])
def test_no_gradient_flows_into_the_holdout(name):
    gradient = jax.grad(lambda h: fake_label_loss(name, jnp.asarray(D), ONES, h))(jnp.asarray(HELD))
    np.testing.assert_array_equal(gradient, 0)


def test_quantile_labels_leave_equal_distributions_where_they_are():
    """A batch that is the hold-out itself has, near enough, no gradient on average."""
    d = jnp.sort(jax.random.normal(jax.random.key(0), (400,)))
    gradient = jax.grad(lambda v: fake_label_loss("holdout_quantile", v, jnp.ones(400), d))(d)
    assert float(jnp.abs(gradient).max()) * 400 < 0.1
