import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core.trees import choose, ensemble


@pytest.mark.parametrize(("vectorise", "batch_size"), [(False, None), (True, None), (True, 2)])
def test_every_way_equals_the_loop(vectorise, batch_size):
    tree = {"a": jnp.arange(5.0), "shared": jnp.float32(3), "none": None}

    def fn(tree, key, factor):
        return {"y": tree["a"] * tree["shared"] * factor, "noise": jax.random.normal(key, (2,))}

    keys = jax.random.split(jax.random.key(0), 5)
    axes = ({"a": 0, "shared": None, "none": None}, 0, None)
    many = jax.jit(ensemble(fn, axes, vectorise=vectorise, batch_size=batch_size))(tree, keys, 2.0)
    for n in range(5):
        one = fn({**tree, "a": tree["a"][n]}, keys[n], 2.0)
        np.testing.assert_allclose(many["y"][n], one["y"], rtol=1e-6)
        np.testing.assert_allclose(many["noise"][n], one["noise"], rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "wanted"), [(True, [[1, 1], [1, 1]]), (False, [[0, 0], [0, 0]]),
                          ([True, False], [[1, 1], [0, 0]])]
)  # fmt: skip
def test_whole_trees_or_rows_of_them_are_chosen(flags, wanted):
    ours, theirs = ({"a": jnp.full((2, 2), n), "b": jnp.full((2,), n)} for n in (1, 0))
    found = choose(jnp.asarray(flags), ours, theirs)
    assert found["a"].tolist() == wanted
    assert found["b"].tolist() == [row[0] for row in wanted]


def test_members_follow_one_another_on_cpu():
    jaxpr = jax.make_jaxpr(ensemble(lambda x: x * 2, (0,)))(jnp.arange(3.0))
    assert "scan" in str(jaxpr)
