"""Several processes of one program: how they meet, and how they stay together.

Each runs the same program on the devices that it has, and arrays lie over the devices of all.
Models are made by all together, and judged by each on its own devices, with the same numbers; the
first process alone writes tables and pictures (``core.files``). What a process decides by its clock
or by what it finds on disk is decided by the first for all: :func:`shared`.
"""

import json
import socket
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxunlearn.core.errors import ConfigError, sentence

WAIT = 60
"""Seconds until a process that finds no other gives up."""
HEARTBEAT = 20
"""Seconds of silence after which a process counts as dead, and the others end."""


def join(processes: int | None, coordinator: str | None, process: int | None) -> None:
    """Joins this process to the others of its program, before JAX has used a device.

    Args:
      processes: how many there are; ``None``: as the cluster says (SLURM, Open MPI, cloud TPUs).
      coordinator: ``"HOST:PORT"`` of the first process, whose port is free.
      process: number of this one, from 0.

    Raises:
      ConfigError: one of the three without the others, a number out of range, an address that
        is none; nobody is met within a minute; this environment does not say who the others are.
    """
    given = {"processes": processes, "coordinator": coordinator, "process_id": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        present = [name for name in given if name not in missing]
        raise ConfigError(
            f"{missing[0]}: expected all of {', '.join(given)}, got {' and '.join(present)} alone"
        )
    if processes is not None:
        assert coordinator is not None
        assert process is not None
        _check(processes, coordinator, process)
        if process:
            _find(coordinator)
    try:
        jax.distributed.initialize(coordinator, processes, process, initialization_timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"processes: expected to meet the others, got {sentence(error)}"
        ) from None


def _check(processes: int, coordinator: str, process: int) -> None:
    if processes < 1:
        raise ConfigError(f"processes: expected a positive number, got {processes}")
    if not 0 <= process < processes:
        raise ConfigError(f"process_id: expected a number from 0 to {processes - 1}, got {process}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"coordinator: expected HOST:PORT, got {coordinator!r}")


def _find(coordinator: str) -> None:
    """Waits until the first process listens: where it does not, jax would end the program."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + WAIT
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > end:
                raise ConfigError(
                    f"coordinator: expected process 0 at {coordinator}, got {sentence(error)}"
                ) from None
            time.sleep(0.2)


def several() -> bool:
    """Tells whether there are other processes."""
    return jax.process_count() > 1


def meet(place: str) -> None:
    """Waits until all processes are here."""
    if several():
        multihost_utils.sync_global_devices(f"jaxunlearn/{place}")


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
