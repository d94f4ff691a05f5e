"""Watch of the processes of one program over each other: who is here, who failed, who is gone.

The first process listens at the coordinator's address, and each other keeps a connection to it
until the end. Lines of JSON go over it: who one is, that one failed and why, that one is done; an
empty line says that one is alive. The operating system closes the connection of a process that
was killed. Whoever hears of another's end ends as well, with one line: work that is shared
cannot go on, and jax would end it later, with a long message.

The service by which JAX's processes know each other runs in a process of its own, on a port of
its own, and ends seconds after the first process: else all would be aborted by jax at once
where the first dies.
"""

import contextlib
import itertools
import json
import os
import secrets
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.core.errors import ConfigError, brief, sentence

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

WAIT = 60
"""Seconds until a process that waits for others gives up, unless told another number."""
SAY = 5.0
"""Seconds between two lines that say for whom a process waits."""
STILL = 300
"""Seconds without any work of a process's main thread after which a line says where it is."""
HEARTBEAT = 60
"""Seconds of silence after which a process counts as dead, and the others end.

One that was killed is known at once, by its connection; a starved one may be silent for long.
"""
ANSWER = 20
"""Seconds in which whoever listens at the coordinator's address has to give a sign of life."""
DONE = 300
"""Seconds that a process which is done waits for the others."""
BEAT = 2.0
"""Seconds between two signs of life."""
LINGER = 3
"""Seconds in which a failing process has its reason read by the others."""

_LONGEST = 65536
_FILES = 256
"""Files that the rest of a program may have open."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_GO_ON = "the same command goes on from the last save"
_BROKEN = ("gloo", "nccl", "connection", "unavailable", "heartbeat", "coordination", "deadline")
"""Words of errors that tell of another process's end."""
_SERVICE = """
import sys, time
from jaxlib import _jax
address, processes, heartbeat, linger = sys.argv[1], *map(int, sys.argv[2:])
service = _jax.get_distributed_runtime_service(address, processes, heartbeat_timeout=heartbeat)
print("ready", flush=True)
sys.stdin.read()
time.sleep(linger)
"""


class _Patience:
    """Time that others have to come."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begin = seconds, time.monotonic()
        self.said = self.begin

    def left(self) -> float:
        return self.begin + self.seconds - time.monotonic()

    def say(self, whom: str) -> None:
        """Says now and then for whom this process waits."""
        now = time.monotonic()
        if now - self.said >= SAY:
            self.said = now
            _print(f"waiting for {whom}: {now - self.begin:.0f} s of {self.seconds:g}")


class _Stillness:
    """Time for which the main thread has not worked at all, by its own clock of the processor.

    It stands still where it waits in a call: for a file system, or for other processes. A loop that
    never ends works.
    """

    def __init__(self) -> None:
        self.thread = threading.main_thread().ident or 0
        known = hasattr(time, "pthread_getcpuclockid")
        self.clock = time.pthread_getcpuclockid(self.thread) if known else None
        self.spent, self.since = 0.0, time.monotonic()

    def place(self) -> str:
        """Returns where it has stood still for so long; nothing if it works, or that was told."""
        if self.clock is None:
            return ""
        now, spent = time.monotonic(), time.clock_gettime(self.clock)
        if spent - self.spent > 0.001:
            self.spent, self.since = spent, now
        if now - self.since < STILL:
            return ""
        self.since = float("inf")
        frame, found = sys._current_frames().get(self.thread), []
        while frame is not None:
            found.append((frame.f_code.co_name, Path(frame.f_code.co_filename), frame.f_lineno))
            frame = frame.f_back
        own = [row for row in found if "jaxunlearn" in row[1].parts]
        places = dict.fromkeys([*found[:1], *own[:1]])
        return ", called by ".join(
            f"{name} ({'/'.join(file.parts[-2:])}:{line})" for name, file, line in places
        )


class _Line:
    """Connection to another process."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.rest = connection, b""
        self.heard, self.done = time.monotonic(), False
        connection.settimeout(LINGER)

    def send(self, message: dict[str, Any] | None = None) -> None:
        """Sends a message, or a sign of life; whoever is gone by now is found out elsewhere."""
        text = b"" if message is None else json.dumps(message).encode()
        with contextlib.suppress(OSError):
            self.connection.sendall(text + b"\n")

    def read(self) -> list[dict[str, Any]] | None:
        """Returns what has come; ``None``: the other is gone."""
        try:
            new = self.connection.recv(_LONGEST)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not new:
            return None
        self.heard = time.monotonic()
        *lines, self.rest = (self.rest + new).split(b"\n")
        try:
            found = [json.loads(line) for line in lines if line]
        except ValueError:
            return None  # of another program
        sound = all(isinstance(one, dict) for one in found) and len(self.rest) < _LONGEST
        return found if sound else None

    def wait(self, seconds: float) -> dict[str, Any] | None:
        """Returns the next message; ``None``: none came."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if _ready([self.connection], left):
                found = self.read()
                if found is None:
                    return None
                if found:
                    return found[0]
        return None

    def drain(self, end: float) -> None:
        """Lets the other read what was sent, and hang up, until then by the clock."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        while (left := end - time.monotonic()) > 0:
            if _ready([self.connection], left) and self.read() is None:
                return


class Watch:
    """Watch of one process over the others; the first process's is the one all talk to.

    Attributes:
      process, processes: number of this one, and how many there are.
      service: port of the service by which JAX's processes know each other.
    """

    def __init__(
        self, processes: int, process: int, coordinator: str, wait: float | None = None
    ) -> None:
        self.processes, self.process, self.coordinator = processes, process, coordinator
        self.lines: dict[int, _Line] = {}
        self.listener: socket.socket | None = None
        self.probe: socket.socket | None = None
        self.token = secrets.token_hex()
        self.child: subprocess.Popen[bytes] | None = None
        self.ending, self.over = threading.Lock(), threading.Event()
        self.stillness, patience = _Stillness(), _Patience(WAIT if wait is None else wait)
        host, _, port = coordinator.rpartition(":")
        self.host = host = host.strip("[]")
        if process:
            self.service = self._join(host, int(port), patience)
        else:
            _check_files(processes)
            self.listener = _listen(host, int(port), coordinator)
            self.service = self._gather(host, patience)
        threading.Thread(target=self._watch, daemon=True, name="jaxunlearn-watch").start()

    # Meeting

    def _join(self, host: str, port: int, patience: _Patience) -> int:
        """Reports to the first process, which may come later; returns the port of the service."""
        connection = _connect(host, port, self.coordinator, patience)
        line = self.lines[0] = _Line(connection)
        line.send({"process": self.process, "processes": self.processes})
        wrong, found = "", list[dict[str, Any]]()
        while not found and not wrong:
            patience.say(f"the others, process 0 is at {self.coordinator}")
            new = line.read() if _ready([connection], 0.2) else []
            silence = time.monotonic() - line.heard
            if new is None:
                wrong = "one that hung up"
            elif silence > ANSWER:
                wrong = f"one that says nothing for {ANSWER} s"
            elif patience.left() < -2 * LINGER:  # it gives up first, and says whom it missed
                wrong = f"one that is not ready within {patience.seconds:g} s"
            found = new or []
        if not wrong and isinstance(found[0].get("service"), int):
            return int(found[0]["service"])
        connection.close()
        expected = f"coordinator: expected process 0 at {self.coordinator}, got "
        told = found[0].get("refused", f"{expected}one of another program") if found else ""
        raise ConfigError(str(told or expected + wrong))

    def _gather(self, host: str, patience: _Patience) -> int:
        """Waits for all others, tells who has no place here why; returns the service's port."""
        assert self.listener is not None
        try:
            self.probe = _probe(host, self.listener.getsockname()[1], self.coordinator, self.token)
        except ConfigError:
            self.listener.close()
            raise
        probed = time.monotonic()
        service = self._start_service(host)
        assert self.child is not None
        assert self.child.stdout is not None
        starts: list[Any] = [self.child.stdout]
        wrong, said = "", time.monotonic()
        while not wrong and (starts or self.probe or len(self.lines) < self.processes - 1):
            missing = self.processes - 1 - len(self.lines)
            numbers = (n for n in range(1, self.processes) if n not in self.lines)
            whom = f"process {_listed(numbers, missing)}" if missing else "the service of JAX"
            if patience.left() <= 0:
                wrong = (
                    f"processes: expected {self.processes} at {self.coordinator} within "
                    f"{patience.seconds:g} s, got all but {whom}"
                )
                break
            patience.say(f"{whom} of {self.processes} at {self.coordinator}")
            if time.monotonic() - said > BEAT:
                said = time.monotonic()
                self._beat()
            probes = [] if self.probe is None else [self.probe]
            waiting = [self.listener, *starts, *probes]
            waiting += [one.connection for one in self.lines.values()]
            ready = _ready(waiting, min(patience.left(), 1.0))
            if self.listener in ready:
                wrong = self._admit()
            elif self.probe and (self.probe in ready or time.monotonic() - probed > ANSWER):
                wrong = (
                    f"coordinator: expected an address of process 0, which is this one, got "
                    f"{self.coordinator}, where another program listens"
                )
            if starts and starts[0] in ready and starts.pop().readline().strip() != b"ready":
                wrong = f"coordinator: expected a free port for JAX, got {service} in use"
            for number, line in list(self.lines.items()):
                if line.connection in ready and line.read() is None:
                    del self.lines[number]  # it may be started again
        for line in self.lines.values():
            line.send({"refused": wrong} if wrong else {"service": service})
        if wrong:
            self._hang_up()
            raise ConfigError(wrong)
        return service

    def _admit(self) -> str:
        """Takes in who knocks; returns what is wrong with all, if anything."""
        assert self.listener is not None
        line = _Line(self.listener.accept()[0])
        told = line.wait(LINGER)
        if self.probe is not None and told == {"probe": self.token}:
            self.probe.close()  # the coordinator's address leads here
            self.probe = None
        if told is None or not {"process", "processes"} <= set(told):
            line.connection.close()  # a look whether somebody listens
            return ""
        number, count = told["process"], told["processes"]
        if count != self.processes:
            wrong = (
                f"processes: expected {self.processes} in all, as process 0 says, got {count} in "
                f"process {number}"
            )
        elif len(self.lines) == self.processes - 1:
            wrong = f"processes: expected {self.processes}, which are all here, got one more"
        elif not isinstance(number, int) or not 0 <= number < count:
            wrong = f"process_id: expected a number from 0 to {count - 1}, got {brief(number)}"
        elif number in (0, *self.lines):
            wrong = f"process_id: expected a number of its own for each process, got {number} twice"
        else:
            self.lines[number] = line
            return ""
        line.send({"refused": wrong})
        line.drain(time.monotonic() + LINGER)
        line.connection.close()
        return wrong

    def _start_service(self, host: str) -> int:
        """Starts the service of JAX in a process that says when it is ready; returns its port."""
        bind = {"::1": "[::1]"}.get(host, "127.0.0.1" if host in _LOOPBACK else "[::]")
        with _listen(host, 0, self.coordinator) as one:
            port = int(one.getsockname()[1])
        words = [f"{bind}:{port}", self.processes, 5 * HEARTBEAT, 2 * LINGER]
        self.child = subprocess.Popen(
            [sys.executable, "-c", _SERVICE, *map(str, words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which then has it end
        )  # fmt: skip
        return port

    def _hang_up(self) -> None:
        end = time.monotonic() + LINGER
        for line in self.lines.values():
            line.drain(end)
            line.connection.close()
        for own in (self.listener, self.probe):
            if own is not None:
                own.close()
        if self.child is not None:
            self.child.kill()
            self.child.communicate()

    def address(self) -> str:
        """Returns where JAX finds its service, as numbers.

        Raises:
          ConfigError: it cannot be reached from here; JAX would abort this process for that.
        """
        try:
            with socket.create_connection((self.host, self.service), timeout=ANSWER) as one:
                found = str(one.getpeername()[0])
        except OSError as error:
            raise ConfigError(
                f"coordinator: expected JAX's service at port {self.service} beside "
                f"{self.coordinator}, which a firewall must let through, got {sentence(error)}"
            ) from None
        return f"[{found}]:{self.service}" if ":" in found else f"{found}:{self.service}"

    # Watching

    def _watch(self) -> None:
        """Listens until the end, and says now and then that this process is alive."""
        said = 0.0
        while not self.over.is_set():
            if time.monotonic() - said > BEAT:
                said = time.monotonic()
                self._beat()
                if place := self.stillness.place():
                    self._note_still(self.process, place)
            waiting: list[Any] = [line.connection for line in self.lines.values()]
            waiting += [] if self.listener is None else [self.listener]
            try:
                ready = _ready(waiting, 0.5)
            except (OSError, ValueError):
                return  # closed at the end
            if self.listener in ready:
                self._admit()  # who comes too late is told so
            for number, line in list(self.lines.items()):
                self._hear(number, line, line.connection in ready)

    def _beat(self) -> None:
        for line in list(self.lines.values()):
            line.send()

    def _note_still(self, process: int, place: str) -> None:
        """Says that a process does nothing; the first one says it of all."""
        if self.process:
            self.lines[0].send({"still": place})
            return
        _print(
            f"warning: process {process} of {self.processes} is alive, but its main thread has "
            f"done nothing for {STILL} s: in {place}"
        )

    def _hear(self, number: int, line: _Line, ready: bool) -> None:
        who = f"process {number} of {self.processes}"
        if ready:
            found = line.read()
            if found is None:
                del self.lines[number]
                if not line.done:
                    self._end(f"{who} has ended; {_GO_ON}")
                return
            for told in found:
                if "over" in told:
                    self._end(str(told["over"]))
                elif "failed" in told:
                    self._end(f"{who} ended with an error: {told['failed']}")
                elif "done" in told:
                    line.done = True
                elif "still" in told:
                    self._note_still(number, str(told["still"]))
        elif not line.done and time.monotonic() - line.heard > HEARTBEAT:
            self._end(f"{who} has not been heard of for {HEARTBEAT} s; {_GO_ON}")

    def _end(self, why: str) -> None:
        """Ends this process for another's end; whose own end is under way is left to it."""
        if not self.ending.acquire(blocking=False):
            return
        _print(f"error: {why}")  # first: the main thread may end this process meanwhile
        if not self.process:
            self._tell({"over": why})
        os._exit(1)

    def _tell(self, message: dict[str, Any]) -> None:
        """Tells those that this process is connected to, and lets them read it."""
        lines, end = list(self.lines.values()), time.monotonic() + LINGER
        for line in lines:
            line.send(message)
        for line in lines:
            line.drain(end)

    # Ending

    def fail(self, why: str) -> bool:
        """Tells the others that this process fails; false if it ends for another's end already.

        An error that may come of another's end waits for word of it. Where this process ends
        already, whoever saw to that has time to finish, and ends it while this waits.
        """
        if any(word in why.lower() for word in _BROKEN):
            time.sleep(LINGER)
        if not self.ending.acquire(blocking=False):
            self.over.wait(2 * LINGER)
            return False
        own = f"process 0 of {self.processes} ended with an error: {why}"
        self._tell({"failed": why} if self.process else {"over": own})
        return True

    def finish(self) -> None:
        """Waits at the end until all are done, as jax does, but no longer than others live."""
        for line in list(self.lines.values()):
            if self.process:
                line.send({"done": True})
        end = time.monotonic() + DONE
        while not all(one.done for one in list(self.lines.values())) and time.monotonic() < end:
            time.sleep(0.05)
        if self.ending.acquire(blocking=False):
            if not self.process:
                for line in list(self.lines.values()):
                    line.send({"done": True})
            self.over.set()


def _listen(host: str, port: int, coordinator: str) -> socket.socket:
    both = host not in _LOOPBACK and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or host == "::1" else socket.AF_INET
    place = host if host in _LOOPBACK else ""
    try:
        return socket.create_server((place, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigError(
            f"coordinator: expected a free port, got {coordinator}: {sentence(error)}"
        ) from None


def _probe(host: str, port: int, coordinator: str, token: str) -> socket.socket:
    """Connects the first process to its address, which has to lead to where it listens."""
    try:
        connection = socket.create_connection((host, port), timeout=5)
        connection.sendall(json.dumps({"probe": token}).encode() + b"\n")
    except (OSError, UnicodeError) as error:  # the latter of names that are none
        raise ConfigError(
            f"coordinator: expected an address of process 0, which is this one, got {coordinator}: "
            f"{sentence(error)}"
        ) from None
    return connection


def _connect(host: str, port: int, coordinator: str, patience: _Patience) -> socket.socket:
    """Connects to the first process; what does not mend itself is told at once."""
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, min(5, patience.left())))
        except (OSError, UnicodeError) as error:
            got, comes = sentence(error), isinstance(error, ConnectionError | TimeoutError)
            if not comes or patience.left() <= 0:
                within = f" within {patience.seconds:g} s" if comes else ""
                raise ConfigError(
                    f"coordinator: expected process 0 at {coordinator}{within}, got {got}"
                ) from None
            patience.say(f"process 0 at {coordinator} ({got})")
            time.sleep(0.2)


def _ready(waiting: Sequence[Any], seconds: float) -> list[Any]:
    """Returns which of some connections can be read, of any number, once one can or time is up."""
    with selectors.DefaultSelector() as some:
        for one in waiting:
            some.register(one, selectors.EVENT_READ)
        return [key.fileobj for key, _ in some.select(max(0.0, seconds))]


def _check_files(processes: int) -> None:
    """Checks that this process may open a connection to each other one."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = processes + _FILES
    if soft in (resource.RLIM_INFINITY, max(soft, needed)):
        return
    try:
        if hard not in (resource.RLIM_INFINITY, max(hard, needed)):
            raise ValueError("more than may be asked for")  # root could raise it for good
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError):
        raise ConfigError(
            f"processes: expected at most {hard - _FILES}, for process 0 keeps a connection to "
            f"each and may open {hard} files here (ulimit -Hn), got {processes}"
        ) from None


def _listed(numbers: Iterable[int], count: int, most: int = 4) -> str:
    """Returns some numbers in words: the first of ``count`` ones, and how many there are more."""
    more = [f"{count - most} more"] if count > most else []
    *first, last = [*map(str, itertools.islice(numbers, most)), *more]
    return f"{', '.join(first)} and {last}" if first else last


def _print(text: str) -> None:
    """Prints a line as a whole, whatever the main thread is at."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
