"""Rows by name: what is found, what is refused, and what messages say."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.keys import Purpose, derive, new_key
from jaxunlearn.core.registry import Registry


class Tool(NamedTuple):
    use: str


@pytest.fixture
def tools():
    return Registry("tools", Tool, {"hammer": Tool("nails"), "saw": Tool("boards")})


def test_rows_are_found_by_name_in_their_order(tools):
    assert list(tools) == ["hammer", "saw"]
    assert len(tools) == 2
    assert tools["saw"] is tools.find("saw")
    assert "saw" in tools
    assert "axe" not in tools
    assert dict(tools) == {"hammer": Tool("nails"), "saw": Tool("boards")}


def test_an_unknown_name_says_which_there_are(tools):
    message = r"^tools: expected one of hammer, saw, got 'hamer'; did you mean 'hammer'"
    with pytest.raises(ConfigError, match=message):
        tools.find("hamer")
    with pytest.raises(ConfigError, match=r"^box\.name: expected one of hammer, saw, got 'x'$"):
        tools.find("x", "box.name")
    with pytest.raises(KeyError):
        tools["x"]


def test_a_row_is_added_once(tools):
    tools.register("axe", Tool("wood"))
    assert list(tools) == ["hammer", "saw", "axe"]
    with pytest.raises(ConfigError, match="tools: expected a name not yet taken, got 'axe'"):
        tools.register("axe", Tool("trees"))
    assert tools["axe"] == Tool("wood")
    tools.register("axe", Tool("trees"), overwrite=True)
    assert tools["axe"] == Tool("trees")
    assert list(tools) == ["hammer", "saw", "axe"]
    with pytest.raises(TypeError, match=r"tools\.drill: expected Tool, got str"):
        tools.register("drill", "holes")
    assert "drill" not in tools


def test_purposes_of_keys_are_never_renumbered():
    """Other numbers are other random choices: every run would change."""
    found = {one.name: int(one) for one in Purpose.__members__.values()}
    wanted = {
        "ORIGINAL": 0, "RETRAINED": 1, "METHOD": 2, "JUDGEMENT": 3, "HELPER": 4,
        "INIT": 16, "BATCHES": 17, "STEPS": 18, "PREPARATION": 19, "LINK": 20, "TURN": 21,
    }  # fmt: skip
    assert wanted.items() <= found.items()
    assert len(Purpose) == len(Purpose.__members__), "no two of the same number"
    key = jax.random.key(0)
    one = derive(key, Purpose.RETRAINED, 2)
    other = jax.random.fold_in(jax.random.fold_in(key, 1), 2)
    assert (jax.random.key_data(one) == jax.random.key_data(other)).all()


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32 + 5, -1])
def test_the_key_of_a_seed_is_that_of_jax(seed):
    found, wanted = (jax.random.key_data(make(seed)) for make in (new_key, jax.random.key))
    np.testing.assert_array_equal(found, wanted)
