"""What means nothing is refused in one line, at every door; benchmarks/fuzz.py draws the cases."""

import importlib.util
from pathlib import Path

FUZZ = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"


def test_two_hundred_cases():
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    rows, faults = fuzz.fuzz(200, seed=0)
    assert faults == []
    assert sum(row["cases"] for row in rows) == 200
    assert all(row["refused"] for row in rows)
    assert sum(row["taken"] for row in rows) > 10
