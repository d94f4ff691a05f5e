"""Memory that a process keeps, seen by the pages that it touches for the first time."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux alone")

SCRIPT = """
import resource
from jaxunlearn.core.memory import keep_memory

kept = keep_memory()
import numpy as np

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (1_000_000, 8_000_000):  # 8 and 64 MB, above and below what malloc maps at most
        np.ones(size).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(kept, faults())
"""
PLAIN = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith("MALLOC_") and key != "GLIBC_TUNABLES"
}


def told(**environment):
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=PLAIN | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    kept, faults = made.stdout.split()
    return kept == "True", int(faults)


def test_arrays_of_the_same_size_find_the_memory_of_those_before():
    kept, faults = told()
    if not kept:
        pytest.skip("another C library than GNU's")
    assert faults < 20


@pytest.mark.parametrize(
    "environment",
    [{"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, {"MALLOC_ARENA_MAX": "4"}],
)
def test_what_the_user_decided_stays(environment):
    kept, faults = told(**environment)
    assert not kept
    assert faults > 20, "memory is had as the environment says"
