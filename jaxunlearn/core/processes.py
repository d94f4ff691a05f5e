"""Several processes of one program: how they meet, and how they stay together.

Each runs the same program on the devices that it has, and arrays lie over the devices of all.
Models are made by all together, and judged by each on its own devices, with the same numbers; the
first process alone writes tables and pictures (``core.files``). What a process decides by its clock
or by what it finds on disk is decided by the first for all: :func:`shared`.
"""

import atexit
import itertools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from jaxunlearn.core import watch
from jaxunlearn.core.errors import ConfigError, brief, sentence

_watch: watch.Watch | None = None
_LONGEST_WAIT = 86_400
_MOST = 65_536
_meetings = itertools.count()


def join(
    processes: int | None, coordinator: str | None, process: int | None,
    wait: float | None = None,
) -> None:  # fmt: skip
    """Joins this process to the others of its program, before JAX has used a device.

    From then on none outlives another: where one is killed or ends with an error, the others end
    as well, within ``watch.HEARTBEAT`` seconds and with one line that says which one and why.

    Args:
      processes: how many there are; ``None``: as the cluster says (SLURM, Open MPI, cloud TPUs).
      coordinator: ``"HOST:PORT"`` of the first process, whose port is free.
      process: number of this one, from 0.
      wait: seconds in which all have to come; by default ``watch.WAIT``, a minute. Lines on the
        error stream say meanwhile for whom this process waits.

    Raises:
      ConfigError: one of the three without the others, a number out of range or of another
        process, other numbers of processes in others, an address that is none, in use, of another
        machine than the first process's or out of reach; not all came in that time; this
        environment does not say who the others are.
    """
    global _watch
    given = {"processes": processes, "coordinator": coordinator, "process_id": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        present = [name for name in given if name not in missing]
        raise ConfigError(
            f"{missing[0]}: expected all of {', '.join(given)}, got {' and '.join(present)} alone"
        )
    wait = watch.WAIT if wait is None else wait
    if not 0 < wait <= _LONGEST_WAIT:
        raise ConfigError(f"wait: expected seconds from above 0 to {_LONGEST_WAIT}, got {wait}")
    devices = None
    if processes is None:
        processes, coordinator, process, devices = _ask_cluster(wait)
    assert coordinator is not None
    assert process is not None
    _check(processes, coordinator, process)
    # else jax keeps SIGTERM to itself, and a process that is asked to end does not
    jax.config.update("jax_enable_preemption_service", False)
    found = watch.Watch(processes, process, coordinator, wait)
    try:
        # the first process's own service is one that nobody asks
        jax.distributed.initialize(
            found.address(), processes, process, devices,
            initialization_timeout=math.ceil(wait), heartbeat_timeout_seconds=5 * watch.HEARTBEAT,
            coordinator_bind_address="127.0.0.1:0",
        )  # fmt: skip
    except ConfigError as error:
        found.fail(str(error))
        raise
    except (RuntimeError, ValueError) as error:
        found.fail(sentence(error))
        raise ConfigError(
            f"processes: expected to meet the others, got {sentence(error)}"
        ) from None
    _watch = found
    atexit.register(found.finish)  # before jax's own, which waits for all
    sys.excepthook = _end_by_error
    _check_devices([device.process_index for device in jax.devices()])


def _ask_cluster(wait: float) -> tuple[int, str, int, Any]:
    """Returns number, coordinator, own number and devices, as jax finds them in the environment."""
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, math.ceil(wait)
        )
    # each cluster has errors of its own: a missing variable, one that is no number
    except Exception as error:
        raise ConfigError(
            f"processes: expected what a cluster sets, got {sentence(error)}"
        ) from None
    coordinator, processes, process, devices = found
    if coordinator is None or processes is None or process is None:
        raise ConfigError(
            "processes: expected SLURM, Open MPI, Kubernetes or a cloud's TPUs around a 'cluster', "
            "got none; --processes N with --coordinator and --process-id does without"
        )
    return int(processes), str(coordinator), int(process), devices


def fail(error: BaseException | str) -> None:
    """Ends this process for an error, where there are others, which end as well.

    What was begun together cannot go on: they would wait for this one. An error that comes of
    another's end gives way to word of that.
    """
    if _watch is None:
        return
    text = error if isinstance(error, str) else sentence(error)
    if _watch.fail(text) and isinstance(error, str):
        print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(1)


def _end_by_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.__excepthook__(kind, error, trace)
    interrupted = issubclass(kind, KeyboardInterrupt)
    assert _watch is not None
    _watch.fail("it was interrupted" if interrupted else f"{kind.__name__}: {sentence(error)}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def agree(name: str, value: Any) -> None:
    """Checks that all processes have the same of something; all call it together.

    Args:
      name: what an error calls it.
      value: whatever JSON can hold.

    Raises:
      ConfigError: another than the first process's.
    """
    if not several():
        return
    own = json.loads(json.dumps(value))
    theirs = shared(own)
    if own != theirs:
        places = [k for k in theirs if own.get(k) != theirs[k]] if isinstance(theirs, dict) else []
        which = f" ({', '.join(map(str, places))})" if places else ""
        raise ConfigError(
            f"{name}: expected the same in all processes, got another in process "
            f"{jax.process_index()} than in process 0{which}"
        )


def _check(processes: int, coordinator: str, process: int) -> None:
    """Checks numbers and address."""
    if processes < 1:
        raise ConfigError(f"processes: expected a positive number, got {processes}")
    if processes > _MOST:  # numbers and counts of JAX's service would take all memory
        raise ConfigError(
            f"processes: expected at most {_MOST}, for process 0 keeps a connection to each, got "
            f"{brief(processes)}"
        )
    if not 0 <= process < processes:
        raise ConfigError(f"process_id: expected a number from 0 to {processes - 1}, got {process}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"coordinator: expected HOST:PORT, got {coordinator!r}")


def _check_devices(owners: Sequence[int]) -> None:
    """Checks that all processes have as many devices; each finds the same.

    Args:
      owners: number of the process of each device of all.
    """
    counts = Counter(owners)
    others = [one for one in sorted(counts) if counts[one] != counts[0]]
    if others:
        more = f" and others in {len(others) - 1} more" if others[1:] else ""
        raise ConfigError(
            f"devices: expected as many in each process, got {counts[0]} in process 0, "
            f"{counts[others[0]]} in process {others[0]}{more}"
        )


def several() -> bool:
    """Tells whether there are other processes."""
    return jax.process_count() > 1


def meet(place: str) -> None:
    """Waits until all processes are here."""
    if several():
        multihost_utils.sync_global_devices(f"jaxunlearn/{place}")


def meet_beside(place: str) -> None:
    """Waits until all processes are here, while their devices may compute something else.

    All call it in the same order. It goes by way of JAX's service, so that a thread may call it
    beside steps whose exchanges it must not come between.
    """
    if several():
        client = distributed.global_state.client
        assert client is not None
        client.wait_at_barrier(f"jaxunlearn/{place}/{next(_meetings)}", 1000 * _LONGEST_WAIT)


def shared(value: Any) -> Any:
    """Returns the first process's value, whatever the others have; all call it together.

    Args:
      value: whatever JSON can hold.
    """
    if not several():
        return value
    text = json.dumps(value).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    own = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        own[:] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(own)))


def gathered(tree: Any) -> Any:
    """Returns the same tree in arrays of this process alone; all processes call it together.

    What lies in this process already is returned as it is.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = one(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if leaf.is_fully_replicated:
            return jnp.asarray(np.asarray(leaf.addressable_data(0)))
        return jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(one, tree)
