"""Every method against something exact, in double precision: one table."""

import jax
import numpy as np
import pytest

from jaxunlearn.methods import METHODS
from tests.methods.exact import checks

CHECKED = checks()
ELSEWHERE = {"neuron_path", "concept_poison", "word_poison"}
"""Methods of the papers, whose equations have test modules of their own."""


def test_every_method_for_classifiers_has_a_check():
    classifiers = {name for name, row in METHODS.items() if row.kind == "classifier"}
    assert classifiers - ELSEWHERE == set(CHECKED)


@pytest.mark.parametrize("name", CHECKED)
def test_exact(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        rows = CHECKED[name]()
        assert rows
        for what, got, wanted, tolerance in rows:
            if isinstance(wanted, str | bool | np.bool_):
                assert got == wanted, what
            else:
                got, wanted = np.asarray(got), np.asarray(wanted)
                assert got.shape == wanted.shape, what
                np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance, err_msg=what)
