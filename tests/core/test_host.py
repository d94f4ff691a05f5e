"""Memory that a process keeps, by the pages that it touches first; fits on one thread."""

import os
import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from jaxunlearn.core import host
from jaxunlearn.metrics import attacks, relearning

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux alone")

SCRIPT = """
import resource
from jaxunlearn.core.host import keep_memory

kept = keep_memory()
import numpy as np

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # 8 and 64 MB: below and above 32 MB, from which on malloc always maps anew by itself
    for size in (1_000_000, 8_000_000):
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


@linux
def test_arrays_of_the_same_size_find_the_memory_of_those_before():
    kept, faults = told()
    if not kept:
        pytest.skip("another C library than GNU's")
    assert faults < 20


@linux
@pytest.mark.parametrize(
    "environment",
    [{"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, {"MALLOC_TOP_PAD_": "1024"}],
)
def test_what_the_user_decided_stays(environment):
    kept, faults = told(**environment)
    assert not kept
    assert faults > 20, "memory is had as the environment says"


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert host.keep_memory() is False


def test_a_library_without_it_is_left_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: object())
    assert host.keep_memory() is False


def threads():
    return {one["num_threads"] for one in threadpool_info()}


@pytest.fixture
def several():
    """Lets libraries use two threads, which tests else do not."""
    import sklearn.linear_model  # noqa: F401

    with threadpool_limits(2):
        assert 2 in threads()
        yield


def test_what_fits_does_so_on_one_thread(several):
    seen = []

    @host.on_one_thread
    def fit(value, *, more):
        """Fits."""
        seen.append(threads())
        return value + more

    assert fit(1, more=2) == 3
    assert seen == [{1}]
    assert 2 in threads(), "as before"
    assert fit.__doc__ == "Fits."


@pytest.mark.parametrize(
    "name", ["loss_attack", "fit_judge", "vector_attack", "entropy_attack", "probe"]
)
def test_the_fits_of_metrics_are_among_them(name, several, monkeypatch):
    from sklearn import linear_model, svm

    seen = []

    def watched(fit):
        def inner(self, *args, **options):
            seen.append(threads())
            return fit(self, *args, **options)

        return inner

    for machine in (linear_model.LogisticRegression, svm.LinearSVC, svm.SVC):
        monkeypatch.setattr(machine, "fit", watched(machine.fit))
    rng = np.random.default_rng(0)
    softmax = rng.dirichlet(np.ones(3), 12).astype(np.float32)
    labels = np.arange(12) % 3
    seen_by = (softmax, labels)
    calls = {
        "loss_attack": lambda: attacks.loss_attack(rng.random(9), rng.random(9)),
        "fit_judge": lambda: attacks.fit_judge(softmax, softmax[::-1], draws=1),
        "vector_attack": lambda: attacks.vector_attack(
            seen_by, seen_by, seen_by, feature="entropy"
        ),
        "entropy_attack": lambda: attacks.entropy_attack(softmax, softmax, softmax),
        "probe": lambda: relearning.probe([seen_by], seen_by),
    }
    calls[name]()
    assert seen
    assert all(one == {1} for one in seen)
