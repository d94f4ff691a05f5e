"""Several processes of one program: the numbers of one, and clear errors where they do not meet."""

import contextlib
import io
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def begin(commands, folders=(), count=2, **more):
    """Starts processes with the devices of one; each may have a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), **more}
    flags = [flag for flag in conftest.FLAGS if "device_count" not in flag]
    flags += [f"--xla_force_host_platform_device_count={4 // count}"]
    environment["XLA_FLAGS"] = " ".join(flags)
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for words, folder in itertools.zip_longest(commands, folders)
    ]  # fmt: skip


def read_all(running):
    """What each of some processes printed."""
    # together: the first ends when all have, and one whose pipe is full and unread does not end
    try:
        with ThreadPoolExecutor() as readers:
            return list(readers.map(lambda one: one.communicate(timeout=1500), running))
    finally:
        for one in running:
            one.kill()


def started(count, folder, *step, status=0, **more):
    """What each of some processes found."""
    port, script = free_port(), HERE / "two_processes.py"
    running = begin(
        [(script, count, n, port, folder, *step) for n in range(count)], count=count, **more
    )
    ended = read_all(running)
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


@pytest.fixture(scope="module")
def alone_of_every_kind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, *started(1, folder, ALL_KINDS="1")


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_find_what_one_does_of_every_kind(alone_of_every_kind, count, tmp_path):
    home, alone = alone_of_every_kind
    compare(KINDS, alone, home, tmp_path, count)


@pytest.mark.long
def test_a_run_goes_on_with_other_numbers_of_processes(alone, tmp_path):
    started(2, tmp_path, 64, status=7)
    begun = checkpoint.read_record(tmp_path / "classifier" / "original.unfinished")["step"]
    assert begun > 0
    started(1, tmp_path, begun + 64, status=7)
    assert checkpoint.read_record(tmp_path / "classifier" / "original.unfinished")["step"] >= begun
    for found in started(4, tmp_path):
        close(found["classifier"], alone[1]["classifier"])


COMMAND = """
import os, resource, sys
from jaxunlearn.cli import main
if os.path.exists("small disk"):  # no file larger than that
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(sys.argv[1:]))
"""
RUN = (
    "run", "mesh=fsdp", "model.name=mlp", "model.options.features=(256,)", "retrained=1",
    "methods=random_label", "methods.random_label.steps=2", "train.batch_size=32",
)  # fmt: skip


def images_of(folder, seed=0):
    """Writes a folder of images for each class."""
    for split, class_name, number in itertools.product(("train", "test"), "ab", range(40)):
        pixels = np.random.default_rng([seed, number, ord(class_name)]).integers(0, 255, (8, 8))
        place = folder / split / class_name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02}.png")


def damaged_file(folder):
    (folder / "data.npz").write_bytes((folder / "data.npz").read_bytes()[:2000])


def other_numbers(folder):
    x, y = np.ones((64, 4), np.float32), np.arange(64) % 2
    x[:, 1] = np.arange(64)
    np.savez(folder / "data.npz", train_x=x, train_y=y, test_x=x, test_y=y)


def small_disk(folder):
    (folder / "small disk").touch()


def damaged_image(folder):
    # of the same size, so that it is found where a batch reads it
    path = folder / "images" / "train" / "b" / "31.png"
    path.write_bytes(bytes(path.stat().st_size))


NPZ = ("data.name=data.npz", "data.unseen=4", "request.classes=1")
STREAM = ("data.name=images", "data.stream=true", "data.unseen=4", "request.classes=1")


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("fault", "words", "said"),
    [
        (damaged_file, NPZ, "data.npz"),
        (other_numbers, NPZ, "data: expected the same in all processes"),
        (small_disk, NPZ, "(cannot write checkpoint|File too large|EFBIG)"),
        (damaged_image, STREAM, "31.png"),
    ],
)
def test_a_fault_of_one_process_alone_ends_the_run_of_all(fault, words, said, victim, tmp_path):
    folders = [tmp_path / str(n) for n in range(2)]
    for folder in folders:
        images_of(folder / "images")
        x, y = np.random.default_rng(0).normal(size=(64, 300)), np.arange(64) % 2
        np.savez(folder / "data.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    fault(folders[victim])
    whom = ("--processes", 2, "--coordinator", f"127.0.0.1:{free_port()}", "--process-id")
    commands = [
        ("-c", COMMAND, *RUN, *words, *whom, n, "--runs", tmp_path / "runs") for n in range(2)
    ]
    running = begin(commands, folders, JAXUNLEARN_CACHE=str(tmp_path / "cache"))
    while all(one.poll() is None for one in running):
        time.sleep(0.05)
    first_end = time.monotonic()
    told = [err for _, err in read_all(running)]
    assert [one.returncode for one in running] == [1, 1], told
    assert time.monotonic() - first_end < watch.HEARTBEAT
    lines = [[n for n in text.splitlines() if n.startswith("error: ")] for text in told]
    assert [len(one) for one in lines] == [1, 1], told
    assert all(re.search(said, one[0]) for one in lines), told
    if fault is not other_numbers:  # which either may notice
        assert f"process {victim} of 2 ended with an error: " in lines[1 - victim][0]


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


@contextlib.contextmanager
def pair(place):
    """Two in this process that know each other."""
    with ThreadPoolExecutor(2) as both:
        met = list(both.map(lambda n: watch.Watch(2, n, place), range(2)))
    lines = [line for one in met for line in one.lines.values()]
    yield met
    for one in met:
        one.ending.acquire(blocking=False)  # so that neither ends this process for the other's end
        one.over.set()
    for thread in threading.enumerate():
        if thread.name == "jaxunlearn-watch":
            thread.join(30)
    for one in met:
        one._hang_up()
    for line in lines:
        line.connection.close()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("apart", [0.0, 0.02, 0.1])
def test_where_both_fail_each_says_so_before_it_ends(first, apart, monkeypatch):
    told, ends, place = io.StringIO(), [], f"127.0.0.1:{free_port()}"

    def ended(status):
        if threading.current_thread() is threading.main_thread():
            ends.append((status, told.getvalue()))
            raise SystemExit

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(watch, "_print", lambda text: told.write(f"{text}\n"))
    monkeypatch.setattr(sys, "stderr", told)
    with pair(place) as met, ThreadPoolExecutor(1) as beside:
        monkeypatch.setattr(watch, "LINGER", 0.2)
        monkeypatch.setattr(processes, "_watch", met[first])
        other = beside.submit(met[1 - first].fail, "no such thing")
        time.sleep(apart)
        with pytest.raises(SystemExit):
            processes.fail("an error of its own")
        other.result()
    assert [status for status, _ in ends] == [1]
    of_other = f"error: process {first} of 2"
    found = [line for line in ends[0][1].splitlines() if not line.startswith(of_other)]
    said = f"error: process {1 - first} of 2 ended with an error: no such thing"
    assert found in (["error: an error of its own"], [said])


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
    monkeypatch.setattr(watch, "ANSWER", 0.5)
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


@pytest.mark.parametrize("answer", [None, b"", b"SSH-2.0-OpenSSH_9.6\r\n", b'{"process": 0}\n'])
def test_an_address_that_leads_to_another_program_is_told_to_process_0(answer, monkeypatch):
    monkeypatch.setattr(watch, "ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as one:
        other, usual = one.getsockname(), socket.create_connection
        monkeypatch.setattr(socket, "create_connection", lambda _, **more: usual(other, **more))

        def serve():
            connection, _ = one.accept()
            with connection:
                if answer is not None:
                    connection.sendall(answer)
                    time.sleep(1)

        thread = threading.Thread(target=serve)
        thread.start()
        said = "coordinator: expected an address of process 0, .* where another program listens"
        with pytest.raises(ConfigError, match=said):
            watch.Watch(2, 0, f"127.0.0.1:{free_port()}", 20)
        thread.join(30)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", "0:0:0:0:0:0:0:1"])
def test_the_service_of_jax_is_where_it_is_told(host, monkeypatch):
    if ":" in host:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
    place = f"{host}:{free_port()}"
    with pair(place) as met:
        monkeypatch.setattr(watch, "LINGER", 0.1)
        addresses = {one.address() for one in met}
        assert addresses == {f"{'[::1]' if ':' in host else '127.0.0.1'}:{met[0].service}"}
        met[0].child.kill()
        met[0].child.communicate()
        for one in met:
            with pytest.raises(ConfigError, match=r"coordinator: expected JAX's service at port"):
                one.address()


@pytest.mark.parametrize(
    ("owners", "said"),
    [
        ([0, 1, 1], "got 1 in process 0, 2 in process 1"),
        ([0, 0, 1, 1, 2], "got 2 in process 0, 1 in process 2"),
        ([0, 1, 1, 2, 2, 3], "got 1 in process 0, 2 in process 1 and others in 1 more"),
    ],
)
def test_other_numbers_of_devices_are_told(owners, said):
    with pytest.raises(ConfigError, match=f"devices: expected as many in each process, {said}$"):
        processes._check_devices(owners)
    processes._check_devices([0, 0, 1, 1])


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
        *(
            ((many, "127.0.0.1:1", number), "processes: expected at most 65536, for process 0")
            for many in (65_537, 200_000_000, 10**23, 10**5000)
            for number in (0, 1)
        ),
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


def test_more_processes_than_files_are_told(monkeypatch):
    monkeypatch.setattr(watch.resource, "getrlimit", lambda _: (600, 1000))
    with pytest.raises(ConfigError, match=r"at most 744, .* 1000 files here \(ulimit -Hn\), got"):
        watch.Watch(60_000, 0, f"127.0.0.1:{free_port()}", 0.1)


def test_of_many_that_are_missing_a_few_are_named(capfd, monkeypatch):
    monkeypatch.setattr(watch, "_check_files", lambda processes: None)
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="got all but process 1, 2, 3, 4 and 65531 more"):
        watch.Watch(65_536, 0, f"127.0.0.1:{free_port()}", 0.3)
    assert time.monotonic() - begin < 20


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
