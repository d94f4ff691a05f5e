"""The table of primitives: one row each, and no other list of them."""

import ast
from collections import Counter
from pathlib import Path

import jaxunlearn.attribution
import jaxunlearn.jaxprs
from jaxunlearn.jaxprs.primitives import TABLE, row_of

NAMES = {row.name for row in TABLE}
ROOMS = [Path(room.__file__).parent for room in (jaxunlearn.attribution, jaxunlearn.jaxprs)]


def test_each_primitive_stands_in_one_row():
    assert [name for name, count in Counter(row.name for row in TABLE).items() if count > 1] == []
    assert row_of("add").role == "sum"
    assert row_of("sort") == ("sort", "unknown", *row_of("sort")[2:])


def test_rows_do_not_contradict_themselves():
    for row in TABLE:
        assert not (row.keeps and row.fills), row.name
        assert not row.still or row.elementwise, row.name
        assert (row.contract is not None) == (row.role == "linear"), row.name
        assert row.axis is None or row.role in ("pool", "max", "layout", "indexed"), row.name


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
