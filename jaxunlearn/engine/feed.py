"""Rows of streamed sets, read ahead of the steps that compute with them.

While the device does one chunk, the rows of the next lie on it already and those of the chunk
after are being read: never more than three chunks at once, wherever they are.
"""

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn.core.types import Key, Sets
from jaxunlearn.data.batches import drawn_slots, streamed
from jaxunlearn.data.streams import Stream, readable
from jaxunlearn.engine.sharding import Sharding

Rows = Mapping[str, Any]
"""Stored examples ``[length, B, ...]`` of a chunk's steps, by name of a streamed set."""


def rows_of_steps(
    sets: Sets, key: Key, starts: Iterable[int], *, batch_size: int, length: int,
    sharding: Sharding | None = None,
) -> Iterator[Rows]:  # fmt: skip
    """Returns the rows of chunks of steps, on the device; the next ones are read meanwhile.

    Args:
      key: of the run.
      starts: the first step of each chunk.
      sharding: batches are divided over the first axis of its mesh, and each process reads
        only what its own devices get.

    Raises:
      DataError: a record is missing or does not decode, or a worker died.
      ValueError: a key whose numbers need not be the same on CPU and accelerator.
    """
    host = _host()
    _check_key(key, host.platform, jax.default_backend())
    parts = streamed(sets)
    places = {name: np.asarray(part.indices) for name, part in parts.items()}
    sizes = {name: np.asarray(part.size) for name, part in parts.items()}
    key = jax.device_put(key, host)
    divided = _Division(sharding, length, batch_size)

    def read(start: int) -> Rows:
        found = {}
        for name, part in parts.items():
            with jax.default_device(host):
                slots = drawn_slots(
                    sizes[name], key, np.int32(start), name=name, batch_size=batch_size,
                    length=length,
                )  # fmt: skip
            own = np.asarray(slots)[:, divided.own]
            found[name] = part.examples.x.read(places[name][own])
        return found

    return _ahead(read, lambda rows: {n: divided.put(tree) for n, tree in rows.items()}, starts)


def readable_sets(sets: Sets) -> contextlib.AbstractContextManager[None]:
    """Lets a method's programs read its streamed sets before the first step, as they ask."""
    return readable({
        f"sets.{name}": part.examples.x[np.asarray(part.indices)]
        for name, part in streamed(sets).items()
    })  # fmt: skip


def batches_in_order(x: Stream, positions: np.ndarray, batch_size: int) -> Iterator[Any]:
    """Returns stored examples at some positions, ``[B, ...]`` at a time, the last batch padded."""
    count = -(-len(positions) // batch_size) * batch_size
    batches = np.resize(positions, count).reshape(-1, batch_size)
    return _ahead(lambda number: x.read(batches[number]), jax.device_put, range(len(batches)))


def _ahead(
    read: Callable[[int], Any], put: Callable[[Any], Any], numbers: Iterable[int]
) -> Iterator[Any]:
    """Yields ``put(read(number))``; the next one is read in a thread while the caller has this."""
    waiting = iter(numbers)
    with ThreadPoolExecutor(1, "stream") as thread:
        number = next(waiting, None)
        coming = None if number is None else thread.submit(read, number)
        while coming is not None:
            made = jax.block_until_ready(put(coming.result()))
            coming = None
            # JAX lets go of the arrays that it copied when Python collects, and not before
            gc.collect(0)
            if (number := next(waiting, None)) is not None:
                coming = thread.submit(read, number)
            yield made
            del made


def _check_key(key: Key, *platforms: str) -> None:
    """Checks that the places drawn on the host are those whose labels the device takes."""
    implementation = str(jax.random.key_impl(key))
    if len(set(platforms)) > 1 and "threefry" not in implementation:
        raise ValueError(
            f"key: expected one of threefry2x32, which gives the same numbers on "
            f"{' and '.join(platforms)}, for streamed sets, got one of {implementation}"
        )


def _host() -> jax.Device:
    """Returns the CPU, whose programs do not wait for those of an accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # a program that was told to know accelerators alone
        return jax.local_devices()[0]


class _Division:
    """How the rows of a chunk are laid out.

    Attributes:
      own: which examples of each batch this process reads.
    """

    def __init__(self, sharding: Sharding | None, length: int, batch_size: int) -> None:
        self.where, self.own, self.batch_size = None, slice(0, batch_size), batch_size
        if sharding is None:
            return
        axis = sharding.mesh.axis_names[0]
        # a batch that does not divide stays whole on every device, as in the step
        divides = batch_size % sharding.mesh.shape[axis] == 0
        spec = PartitionSpec(None, axis) if divides else PartitionSpec()
        self.where = NamedSharding(sharding.mesh, spec)
        found = self.where.addressable_devices_indices_map((length, batch_size)).values()
        ends = [place[1].indices(batch_size)[:2] for place in found if place is not None]
        self.own = slice(min(start for start, _ in ends), max(stop for _, stop in ends))

    def put(self, tree: Any) -> Any:
        """Puts what this process read on the devices, as arrays ``[length, B, ...]``."""
        if self.where is None:
            return jax.device_put(tree)
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(
                self.where, leaf, (len(leaf), self.batch_size, *leaf.shape[2:])
            ),
            tree,
        )
