"""Banks: margins by hand, and files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.concepts import load_bank, make_bank, margins, save_bank
from jaxunlearn.core.errors import DataError


def bank(**options):
    vectors = [[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]
    options = {"useful": [True, True, False], **options}
    return make_bank(["a", "b", "c"], vectors, [5.0, 0.0, 7.0], **options)


def test_margins_by_hand():
    features = jnp.array([[1.0, 1.0], [0.0, -1.0]])
    found = margins(bank(), features)
    np.testing.assert_allclose(found, [[12 / 5, 1, 0], [1 / 5, -1, 0]], rtol=1e-6)
    assert found.dtype == jnp.float32


def test_margins_jit_and_map():
    features = jax.random.normal(jax.random.key(0), (4, 3, 2))
    plain = jnp.stack([margins(bank(), part) for part in features])
    np.testing.assert_allclose(jax.jit(jax.vmap(margins, (None, 0)))(bank(), features), plain)


def test_margins_of_half_precision():
    assert margins(bank(), jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.float32


def test_a_zero_vector_that_is_not_useful_has_margin_and_gradient_zero():
    empty = make_bank(["a", "b"], [[1.0, 0.0], [0.0, 0.0]], useful=[True, False])
    slopes = jax.jit(jax.grad(lambda e: jnp.sum(margins(empty, e))))(jnp.ones((1, 2)))
    np.testing.assert_array_equal(slopes, [[1, 0]])


def test_margins_of_other_features():
    with pytest.raises(ValueError, match=r"features: expected shape \[B, 2\], got \[3, 4\]"):
        margins(bank(), jnp.ones((3, 4)))


def test_defaults_of_a_bank():
    made = make_bank(["a"], [[1, 2]])
    assert made.vectors.dtype == made.intercepts.dtype == jnp.float32
    assert made.useful.tolist() == [True]
    assert np.isnan(made.accuracy).all()
    assert np.isnan(made.p_value).all()


@pytest.mark.parametrize(
    ("names", "vectors", "options", "message"),
    [
        ([], np.zeros((0, 3)), {}, "vectors: expected shape"),
        (["a"], [1.0, 2.0], {}, "vectors: expected shape"),
        (["a", "a"], [[1.0], [2.0]], {}, "names: expected 2 different names"),
        (["a"], [[1.0], [2.0]], {}, "names: expected 2 different names"),
        (["a"], [[np.nan]], {}, "vectors: expected finite"),
        (["a"], [[1.0]], {"intercepts": [np.inf]}, "intercepts: expected finite"),
        (["a"], [[1.0]], {"intercepts": [1.0, 2.0]}, r"intercepts: expected shape \[1\]"),
        (["a"], [[1.0]], {"useful": True}, r"useful: expected shape \[1\]"),
        (["a"], [[0.0]], {}, "no zero vector, got one for 'a'"),
    ],
)
def test_malformed_banks(names, vectors, options, message):
    with pytest.raises(ValueError, match=message):
        make_bank(names, vectors, **options)


def test_a_bank_comes_back_from_its_file(tmp_path):
    kept = bank(accuracy=[0.9, 0.8, 0.5], p_value=[0.01, 0.02, np.nan])
    save_bank(tmp_path / "bank.npz", kept)
    found = load_bank(tmp_path / "bank.npz", 2)
    assert found.names == kept.names
    jax.tree.map(np.testing.assert_array_equal, found, kept)


def test_text_vectors_need_names_only(tmp_path):
    np.savez(tmp_path / "text.npz", vectors=np.eye(2), names=np.array(["wing", "wheel"]))
    found = load_bank(str(tmp_path / "text.npz"), 2)
    assert found.names == ("wing", "wheel")
    assert found.useful.all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": np.eye(2)}, "vectors and names, got vectors"),
        ({"vectors": np.eye(3), "names": ["a", "b", "c"]}, r"\[m, 2\], .* got \[3, 3\]"),
        ({"vectors": np.eye(2), "names": [1, 2]}, "names: expected strings"),
        ({"vectors": np.eye(2), "names": "a"}, "names: expected strings"),
        ({"vectors": [["x"]], "names": ["a"]}, "vectors: expected numbers"),
        ({"vectors": np.eye(2), "names": ["a", "a"]}, "different names"),
        ({"vectors": np.eye(2), "names": ["a", "b"], "intercepts": [1]}, "intercepts: expected"),
        ({"vectors": np.eye(2), "names": ["a", {}]}, "names: expected an array"),
    ],
)
def test_malformed_files_are_named(tmp_path, arrays, message):
    path = tmp_path / "bank.npz"
    np.savez(path, **{k: np.asarray(v, object if v == ["a", {}] else None) if k == "names" else v
                      for k, v in arrays.items()})  # fmt: skip
    with pytest.raises(DataError, match=message) as error:
        load_bank(path, 2)
    assert str(path) in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="got nothing"):
        load_bank(tmp_path / "none.npz", 2)
    with pytest.raises(DataError, match="got a folder"):
        load_bank(tmp_path, 2)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="another kind"):
        load_bank(tmp_path / "text.npz", 2)
    with pytest.raises(ValueError, match=r"ending in \.npz"):
        save_bank(tmp_path / "bank", bank())
