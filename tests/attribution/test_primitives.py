"""The table of primitives: one row each, and no other list of them."""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

from jax.extend.core import Primitive

import jaxunlearn.attribution
import jaxunlearn.jaxprs
from jaxunlearn.jaxprs.primitives import REFUSED, TABLE, row_of

NAMES = {row.name for row in TABLE}
ROOMS = [Path(room.__file__).parent for room in (jaxunlearn.attribution, jaxunlearn.jaxprs)]


def test_each_primitive_stands_in_one_row():
    assert [name for name, count in Counter(row.name for row in TABLE).items() if count > 1] == []
    assert row_of("add").role == "sum"
    assert row_of("cumlogsumexp").role == "unknown"


def test_rows_do_not_contradict_themselves():
    for row in TABLE:
        assert not (row.keeps and row.fills), row.name
        assert not row.still or row.elementwise, row.name
        assert (row.contract is not None) == (row.role == "linear"), row.name
        assert row.axis is None or not row.elementwise, row.name
        assert row.fixed is None or row.role == "mix", row.name
        assert not row.moves or row.affine in (None, "through"), row.name


def primitives_of_jax():
    """The names of the primitives of the installed JAX, with the modules that hold them.

    Without those of its languages for kernels, and of what it calls experimental.
    """
    found = {}
    for name, module in list(sys.modules.items()):
        if re.match(r"jax(\.|$)(?!experimental)(?!.*(pallas|mosaic|triton))", name):
            for value in list(vars(module).values()):
                if isinstance(value, Primitive):
                    found.setdefault(value.name, name)
    return found


def unheard_of(names):
    return sorted(name for name in names if name not in NAMES and name not in REFUSED)


def test_each_primitive_of_jax_is_covered_or_refused_with_a_reason():
    found = primitives_of_jax()
    assert len(found) > 200
    assert {"add", "while", "scatter-add", "fft", "custom_jvp_call"} <= set(found)
    assert unheard_of(found) == []
    assert unheard_of(["add", "qr", "invented"]) == ["invented"]


def test_what_is_refused_is_refused_for_a_reason():
    loops = {row.name for row in TABLE if row.role == "loop"}
    assert NAMES & set(REFUSED) == loops - {"cond"}
    assert all(reason and len(reason) < 80 for reason in REFUSED.values())


def lists_of_primitives(tree):
    """Collections, texts and alternatives that name two primitives or more."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Set | ast.List | ast.Tuple):
            words = [leaf.value for leaf in node.elts if isinstance(leaf, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            words = words if NAMES.issuperset(words) else []
        elif isinstance(node, ast.BoolOp):
            compared = [side for side in node.values if isinstance(side, ast.Compare)]
            same = compared and ast.unparse(compared[0].left)
            right = [side.comparators[0] for side in compared if ast.unparse(side.left) == same]
            words = [leaf.value for leaf in right if isinstance(leaf, ast.Constant)]
        else:
            continue
        if len(NAMES.intersection(map(str, words))) > 1:
            yield node.lineno, words


def test_there_is_no_other_list_of_primitives():
    for path in (path for room in ROOMS for path in room.rglob("*.py")):
        if path.name != "primitives.py":
            assert list(lists_of_primitives(ast.parse(path.read_text()))) == [], path.name


def test_a_list_would_be_found():
    for text in (
        'x = {"add", "mul"}',
        'x = names("add mul")',
        'y = op.name == "add" or op.name == "mul"',
    ):
        assert list(lists_of_primitives(ast.parse(text))), text
