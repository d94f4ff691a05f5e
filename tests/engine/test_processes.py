"""Several processes of one program: the numbers of one, and clear errors where they do not meet."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxunlearn.core import processes, watch
from jaxunlearn.core.errors import ConfigError

HERE = Path(__file__).parent
COSTS = ("time", "memory", "speed-up")
"""Beginnings of rows that are not compared: of the clock, and of how arrays lie."""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(count, folder):
    """What each of some processes printed."""
    port, environment = free_port(), {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    environment.pop("XLA_FLAGS", None)
    running = [
        subprocess.Popen(
            [sys.executable, HERE / "two_processes.py", *map(str, (count, n, port, folder))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for n in range(count)
    ]  # fmt: skip
    found = []
    for one in running:
        out, err = one.communicate(timeout=500)
        assert one.returncode == 0, err[-3000:]
        found.append(json.loads(out.partition("FOUND")[2]))
    return found


def close(one, other, place=""):
    """Compares trees of numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            if not name.startswith(COSTS):
                close(one[name], other[name], f"{place}/{name}")
    elif isinstance(one, list):
        for n, pair in enumerate(zip(one, other, strict=True)):
            close(*pair, f"{place}/{n}")
    elif one is not None:
        assert math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5), (place, one, other)


def test_two_processes_find_what_one_does(tmp_path):
    (alone,) = started(1, tmp_path / "one")
    first, second = started(2, tmp_path / "two")
    close(first, alone)
    close(second, alone)  # which judges for itself, and hears of the first's decisions
    for kind in ("classifier", "gan", "language"):
        files = [sorted(p.name for p in (tmp_path / n / kind).glob("*.*")) for n in ("one", "two")]
        assert files[0] == files[1]
        assert "report.json" in files[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((2, "127.0.0.1:1", None), "process_id: expected all of"),
        ((None, "127.0.0.1:1", 0), "processes: expected all of"),
        ((0, "127.0.0.1:1", 0), "processes: expected a positive number, got 0"),
        ((2, "127.0.0.1:1", 2), "process_id: expected a number from 0 to 1, got 2"),
        ((2, "127.0.0.1", 0), "coordinator: expected HOST:PORT"),
        ((2, "127.0.0.1:99999", 0), "coordinator: expected HOST:PORT"),
        ((2, "no.such.host.invalid:80", 1), "coordinator: expected process 0 at"),
    ],
)
def test_what_cannot_meet_is_told_at_once(given, said):
    with pytest.raises(ConfigError, match=said):
        processes.join(*given)


def test_nobody_listens(monkeypatch):
    monkeypatch.setattr(watch, "WAIT", 0.3)
    with pytest.raises(ConfigError, match=r"coordinator: expected process 0 at .* refused"):
        processes.join(2, f"127.0.0.1:{free_port()}", 1)


def test_alone_nothing_is_shared():
    assert processes.shared({"a": 1}) == {"a": 1}
    assert not processes.several()
    tree = {"a": 3}
    assert processes.gathered(tree) == tree
