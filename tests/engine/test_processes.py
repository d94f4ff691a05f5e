"""Several processes of one program: the numbers of one, and clear errors where they do not meet."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxunlearn import checkpoint
from jaxunlearn.core import processes, watch
from jaxunlearn.core.errors import ConfigError
from tests import conftest

HERE = Path(__file__).parent
KINDS = ("classifier", "gan", "language")
COSTS = ("time", "memory", "speed-up")
"""Beginnings of rows that are not compared: of the clock, and of how arrays lie."""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(count, folder, *step, status=0, **more):
    """What each of some processes printed."""
    port, environment = free_port(), {**os.environ, "PYTHONPATH": str(HERE.parents[1]), **more}
    flags = [flag for flag in conftest.FLAGS if "device_count" not in flag]
    flags += [f"--xla_force_host_platform_device_count={4 // count}"]
    environment["XLA_FLAGS"] = " ".join(flags)
    running = [
        subprocess.Popen(
            [sys.executable, HERE / "two_processes.py", *map(str, (count, n, port, folder, *step))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for n in range(count)
    ]  # fmt: skip
    # together: the first ends when all have, and one whose pipe is full and unread does not end
    with ThreadPoolExecutor() as readers:
        ended = list(readers.map(lambda one: one.communicate(timeout=500), running))
    for one, (_, err) in zip(running, ended, strict=True):
        assert one.returncode in (status, 1 if status else 0), err[-3000:]
    return [json.loads(out.partition("FOUND")[2]) for out, _ in ended if not status]


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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds, and its runs."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, *started(1, folder)


def compare(kinds, alone, home, there, count=2):
    # each process judges for itself, and hears of the first's decisions
    for found in started(count, there, **({"ALL_KINDS": "1"} if len(kinds) > 1 else {})):
        close(found, alone)
    for kind in kinds:
        files = [sorted(p.name for p in (n / kind).glob("*.*")) for n in (home, there)]
        assert files[0] == files[1]
        assert "report.json" in files[0]


def test_two_processes_find_what_one_does(alone, tmp_path):
    compare(("classifier",), alone[1], alone[0], tmp_path)


@pytest.mark.long
def test_two_and_four_processes_find_what_one_does_of_every_kind(tmp_path):
    (alone,) = started(1, tmp_path / "one", ALL_KINDS="1")
    for count in (2, 4):
        compare(KINDS, alone, tmp_path / "one", tmp_path / f"of {count}", count)


@pytest.mark.long
def test_a_run_goes_on_with_other_numbers_of_processes(alone, tmp_path):
    started(2, tmp_path, 64, status=7)
    begun = checkpoint.read_record(tmp_path / "classifier" / "original.unfinished")["step"]
    assert begun > 0
    started(1, tmp_path, begun + 64, status=7)
    # the save of one process may be under way when it ends
    assert checkpoint.read_record(tmp_path / "classifier" / "original.unfinished")["step"] >= begun
    for found in started(4, tmp_path):
        close(found["classifier"], alone[1]["classifier"])


PEER = """
import os, sys, time
from jaxunlearn.core import watch
watch.BEAT, watch.HEARTBEAT, watch.SAY = 0.1, 2, 100
if sys.argv[3] == "stands still":
    watch.STILL = 0.5
def look():
    time.sleep(60)
one = watch.Watch(2, int(sys.argv[1]), sys.argv[2])
print("met", flush=True)
if sys.argv[3] == "fails":
    time.sleep(0.5)
    one.fail("no such thing")
    os._exit(1)
if sys.argv[3] == "is done":
    one.finish()
    os._exit(0)
look()
"""


def peers(*does):
    """Processes that know each other, and then do what they are told."""
    place = f"127.0.0.1:{free_port()}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PEER, str(n), place, told],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n, told in enumerate(does)
    ]  # fmt: skip
    assert [one.stdout.readline() for one in running] == ["met\n"] * len(does)
    return running


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("is killed", "process {} of 2 has ended; the same command"),
        ("fails", "process {} of 2 ended with an error: no such thing\n"),
        ("stops", "process {} of 2 has not been heard of for 2 s; the same command"),
        ("is done", ""),
    ],
)
def test_whoever_hears_of_anothers_end_ends_with_one_line(does, said, victim):
    running = peers(*(does if n == victim or not said else "" for n in range(2)))
    if does in ("is killed", "stops"):
        running[victim].send_signal(signal.SIGKILL if does == "is killed" else signal.SIGSTOP)
    _, err = running[1 - victim].communicate(timeout=60)
    assert err.count("\n") == bool(said), err
    assert said.format(victim) in err
    assert running[1 - victim].returncode == bool(said)
    running[victim].kill() if said else running[victim].wait(60)
    running[victim].communicate()


def test_who_is_alive_but_does_nothing_is_told_with_its_place():
    running = peers("stands still", "stands still")
    lines = sorted(running[0].stderr.readline() for _ in range(2))
    for number, line in enumerate(lines):
        assert f"warning: process {number} of 2 is alive, but its main thread" in line
        assert re.search(r"nothing for 0.5 s: in look \(<string>:\d+\)$", line)
    for one in running:
        one.kill()
    for one in running:
        assert "warning" not in one.communicate()[1]  # said once, by the first for all


def test_who_works_does_not_stand_still(monkeypatch):
    monkeypatch.setattr(watch, "STILL", 0.05)
    stillness = watch._Stillness()
    for _ in range(5):
        sum(range(1_000_000))
        assert not stillness.place()


def meet_all(*given):
    """What processes of these numbers, each as it was told, hear of each other."""
    place, told = f"127.0.0.1:{free_port()}", {}

    def one(number, count, process):
        try:
            watch.Watch(count, process, place)
        except ConfigError as error:
            told[number] = str(error)

    threads = [threading.Thread(target=one, args=(n, *row)) for n, row in enumerate(given)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return told


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (((3, 0), (3, 1), (3, 1)), "process_id: .* got 1 twice"),
        (((2, 0), (2, 2)), "process_id: expected a number from 0 to 1, got 2"),
        (((2, 0), (2, -1)), "process_id: expected a number from 0 to 1, got -1"),
        (((2, 0), (3, 1)), "processes: expected 2 in all, as process 0 says, got 3 in process 1"),
        (((2, 0), (3, 2)), "processes: expected 2 in all, as process 0 says, got 3 in process 2"),
    ],
)
def test_numbers_that_do_not_fit_are_told_to_all(given, said):
    told = meet_all(*given)
    assert len(told) == len(given)
    assert all(re.search(said, text) for text in told.values()), told


def test_whoever_waits_says_for_whom_and_gives_up(monkeypatch, capfd):
    monkeypatch.setattr(watch, "WAIT", 2)
    monkeypatch.setattr(watch, "SAY", 0.3)
    told = meet_all((4, 0), (4, 1))
    said = r"processes: expected 4 at .* within 2 s, got all but process 2 and 3"
    assert len(told) == 2
    assert all(re.fullmatch(said, text) for text in told.values()), told
    lines = capfd.readouterr().err
    assert re.search(r"waiting for process 2 and 3 of 4 at 127.*: \d s of 2\n", lines)
    assert re.search(r"waiting for the others, process 0 is at 127.*: \d s of 2\n", lines)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "one that hung up"),
        (b"", "one that says nothing for 0.5 s"),
        (b"HTTP/1.1 400 Bad Request\r\n", "one that hung up"),
        (b'{"hello": 1}\n', "one of another program"),
    ],
)
def test_another_program_at_that_port_is_told(answer, said, monkeypatch):
    monkeypatch.setattr(watch, "HEARTBEAT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as one:

        def serve():
            connection, _ = one.accept()
            with connection:
                if answer is not None:
                    connection.sendall(answer)
                    connection.recv(100)
                    connection.recv(100)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ConfigError, match=f"coordinator: expected process 0 at .*, got {said}"):
            processes.join(2, f"127.0.0.1:{one.getsockname()[1]}", 1)
        thread.join(30)


def test_a_port_in_use_is_told():
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        pytest.raises(ConfigError, match=r"coordinator: expected a free port, got .* in use"),
    ):
        processes.join(2, f"127.0.0.1:{one.getsockname()[1]}", 0)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "processes: expected SLURM, Open MPI, Kubernetes or a cloud's TPUs"),
        ({"SLURM_NTASKS": "two"}, "processes: expected what a cluster sets, got invalid literal"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "coordinator: expected process 0 at node1:"),
    ],
)
def test_a_cluster_is_asked(variables, said, monkeypatch):
    monkeypatch.setattr(watch, "WAIT", 0.3)
    usual = {"JOB_ID": "7", "STEP_NODELIST": "node[1-2]", "PROCID": "0", "LOCALID": "0"}
    for name, value in usual.items() if variables else ():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        processes.join(None, None, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((2, "127.0.0.1:1", None), "process_id: expected all of"),
        ((None, "127.0.0.1:1", 0), "processes: expected all of"),
        ((0, "127.0.0.1:1", 0), "processes: expected a positive number, got 0"),
        ((2, "127.0.0.1:1", 2), "process_id: expected a number from 0 to 1, got 2"),
        ((2, "127.0.0.1", 0), "coordinator: expected HOST:PORT"),
        ((2, "127.0.0.1:99999", 0), "coordinator: expected HOST:PORT"),
        ((2, ":80", 1), "coordinator: expected HOST:PORT"),
        *(
            ((2, f"{host}:80", number), f"coordinator: expected {what}")
            for number, what in enumerate(
                ["an address of process 0, which is this", "process 0 at"]
            )
            for host in ("no.such.host.invalid", "a..b", "http://127.0.0.1", "255.255.255.255")
        ),
        *(
            ((2, "127.0.0.1:80", 1, seconds), "wait: expected seconds from above 0 to 86400, got")
            for seconds in (0.0, -1.0, math.nan, math.inf)
        ),
    ],
)
def test_what_cannot_meet_is_told_at_once(given, said):
    with pytest.raises(ConfigError, match=said):
        processes.join(*given)


def test_nobody_listens(monkeypatch, capfd):
    monkeypatch.setattr(watch, "SAY", 0.1)
    said = r"coordinator: expected process 0 at .* within 0.4 s, got .* refused"
    with pytest.raises(ConfigError, match=said):
        processes.join(2, f"127.0.0.1:{free_port()}", 1, 0.4)
    assert re.search(r"waiting for process 0 at .* refused\): 0 s of 0.4\n", capfd.readouterr().err)


def test_alone_nothing_is_shared():
    assert processes.shared({"a": 1}) == {"a": 1}
    assert not processes.several()
    tree = {"a": 3}
    assert processes.gathered(tree) == tree
