"""The arrays of a checkpoint: a table of the tree's leaves, and Orbax for the contents.

Orbax writes the arrays under their leaf paths (``params/dense/kernel``), each process
and device its own part. The table, ``leaves.json``, holds what Orbax does not know:
the keys of each path, the generators of typed keys, and arrays without elements.
"""

import contextlib
import glob
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxunlearn.core.errors import CheckpointError, sentence
from jaxunlearn.core.trees import path_name, to_device

LEAVES, VARIABLES = "leaves.json", "variables"
"""The table of leaves, and the folder of arrays."""


class Spec(NamedTuple):
    """The form in which a leaf is stored.

    Attributes:
      path: its keys in the tree.
      shape: of the array; for a typed key, of its ``uint32`` data.
      dtype: of the leaf; ``key<...>`` for a typed key.
      impl: the generator of a typed key; ``None`` for any other leaf.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    impl: str | None

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


Leaves = dict[str, tuple[Spec, Any]]
"""Key path -> (the form in which it is stored, the leaf), in the order of the tree."""


def flatten(tree: Any) -> Leaves:
    """Lists the leaves of a tree by key path.

    Raises:
      TypeError: a leaf is no array.
      ValueError: two key paths are equal.
    """
    found: Leaves = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name, path = path_name(keys), tuple(path_name([key]) for key in keys)
        if name in found:
            raise ValueError(f"expected distinct leaf paths, got {name!r} twice")
        leaf = leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else np.asarray(leaf)
        if not _is_key(leaf) and leaf.dtype.kind in "OUSMm":  # objects, texts, dates
            raise TypeError(f"leaf {name!r}: expected an array, got dtype {leaf.dtype}")
        found[name] = _spec(path, leaf), leaf
    return found


def copied(leaves: Leaves) -> Leaves:
    """Copies the arrays, all at once, to be written later: off their devices, where one process
    holds them; of several processes each keeps its parts where they are, on CPUs as a copy.
    """
    raw = {name: _storable(leaf) for name, (_, leaf) in leaves.items()}
    for leaf in raw.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    # on CPUs an array and its host copy are one, and the former may be donated
    several, on_cpu = jax.process_count() > 1, jax.default_backend() == "cpu"
    return {
        name: (
            leaves[name][0],
            np.array(leaf)
            if not several or isinstance(leaf, np.ndarray)
            else jnp.copy(leaf) if on_cpu else leaf,
        )
        for name, leaf in raw.items()
    }  # fmt: skip


def begin(path: Path, leaves: Leaves) -> Callable[[], None]:
    """Begins to write the table and the arrays into the folder ``path``; called by all processes.

    Returns:
      A function that waits until all is written, reads it back and compares it bit by bit. It may
      be called in a thread, while what :func:`copied` returned is changed or donated. It raises a
      ``CheckpointError`` if that is not what was to be written.
    """
    if jax.process_index() == 0:
        table = [spec._asdict() for spec, _ in leaves.values()]
        (path / LEAVES).write_text(json.dumps(table, indent=2) + "\n")
    arrays = {name: _storable(leaf) for name, (spec, leaf) in leaves.items() if not _empty(spec)}
    if not arrays:  # Orbax refuses an empty tree, and arrays without elements
        return lambda: None
    parts = {name: _parts(leaf) for name, leaf in arrays.items()}
    alike = {name: _alike(leaf) for name, leaf in arrays.items()}
    with contextlib.ExitStack() as until_begun:
        way = until_begun.enter_context(_for_orbax(path))
        response = ocp.save_async(way / VARIABLES, arrays)
        stack = until_begun.pop_all()
    return partial(_read_back, path, way, response, stack, parts, alike)


def _read_back(
    path: Path, way: Path, response: Any, stack: contextlib.ExitStack,
    parts: dict[str, list[np.ndarray]], alike: dict[str, Any],
) -> None:  # fmt: skip
    with stack:
        response.result()
        found = ocp.load(way / VARIABLES, alike)
    for name, wanted in parts.items():
        if not all(map(_equal_bits, wanted, _parts(found[name]))):
            raise CheckpointError(f"checkpoint {path}: leaf {name!r} reads back as another array")


@contextlib.contextmanager
def _for_orbax(path: Path) -> Iterator[Path]:
    """Yields a way to a folder without the characters ``*?[]``; Orbax is silent meanwhile.

    Orbax looks for its files by patterns that begin with the path: where it holds such
    characters it finds none, and leaves the parts of the arrays unmerged. Its threads log the
    tracebacks of errors that it raises, too.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        if glob.escape(str(path)) == str(path):
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="jaxunlearn-") as folder:
            way = Path(folder) / "checkpoint"
            way.symlink_to(path, target_is_directory=True)
            yield way
    finally:
        logger.setLevel(level)


def _alike(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _parts(leaf: Any) -> list[np.ndarray]:
    """Returns what this process holds of an array."""
    if isinstance(leaf, jax.Array):
        return [np.asarray(shard.data) for shard in leaf.addressable_shards]
    return [np.asarray(leaf)]


def _equal_bits(one: np.ndarray, other: np.ndarray) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (one, other))
    return np.array_equal(first, second)


def read(path: Path, like: Any = None) -> Any:
    """Reads what ``write`` wrote, as ``checkpoint.load`` describes."""
    stored = _read_table(path)
    # without ``like``, as if like NumPy arrays
    wanted = {n: (s, _template(s)) for n, s in stored.items()} if like is None else flatten(like)
    _check_alike(path, {name: spec for name, (spec, _) in wanted.items()}, stored)
    targets = {name: _target(leaf, stored[name]) for name, (_, leaf) in wanted.items()}
    arrays = {name: _zeros(targets[name]) for name, spec in stored.items() if _empty(spec)}
    rest = {name: target for name, target in targets.items() if name not in arrays}
    try:
        with _for_orbax(path) as way:
            arrays |= ocp.load(way / VARIABLES, rest) if rest else {}
    except Exception as error:  # Orbax has many kinds
        raise CheckpointError(f"cannot read checkpoint {path}: {sentence(error)}") from error
    leaves = {name: _finish(arrays[name], leaf, stored[name]) for name, (_, leaf) in wanted.items()}
    if like is None:
        return _nest({stored[name].path: leaf for name, leaf in leaves.items()})
    return jax.tree.unflatten(jax.tree.structure(like), leaves.values())


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _spec(path: tuple[str, ...], leaf: Any) -> Spec:
    if not _is_key(leaf):
        return Spec(path, tuple(leaf.shape), str(leaf.dtype), None)
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    # an abstract key has no key_impl; it is only compared, and that by its dtype
    impl = str(jax.random.key_impl(leaf)) if isinstance(leaf, jax.Array) else None
    return Spec(path, data.shape, str(leaf.dtype), impl)


def _empty(spec: Spec) -> bool:
    return 0 in spec.shape


def _storable(leaf: Any) -> Any:
    array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    several = jax.process_count() > 1
    if isinstance(array, jax.Array) and not (several and array.is_fully_addressable):
        return array
    # of several processes one alone holds it: that Orbax saves only from NumPy
    return np.asarray(array)


def _read_table(path: Path) -> dict[str, Spec]:
    try:
        rows = json.loads((path / LEAVES).read_text())
        specs = [
            Spec(tuple(row["path"]), tuple(row["shape"]), row["dtype"], row["impl"]) for row in rows
        ]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {path}: {LEAVES} is damaged: {sentence(error)}"
        ) from error
    return {"/".join(spec.path): spec for spec in specs}


def _check_alike(path: Path, wanted: dict[str, Spec], stored: dict[str, Spec]) -> None:
    for name in wanted | stored:
        expected, got = (str(specs.get(name, "none")) for specs in (wanted, stored))
        if expected != got:
            raise CheckpointError(
                f"checkpoint {path}: leaf {name!r}: expected {expected}, got {got}"
            )


def _template(spec: Spec) -> np.ndarray:
    """Makes an array of this shape that takes no memory."""
    dtype = np.uint32 if spec.impl else jnp.dtype(spec.dtype)
    return np.broadcast_to(np.zeros((), dtype), spec.shape)


def _target(leaf: Any, spec: Spec) -> Any:
    """Tells Orbax the kind of array to make: a sharded one or a NumPy array."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or (isinstance(leaf, jax.Array) and not leaf.committed):
        return _template(spec)
    dtype = jnp.uint32 if spec.impl else leaf.dtype
    return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=sharding)


def _zeros(target: Any) -> Any:
    array = np.zeros(target.shape, target.dtype)
    return array if isinstance(target, np.ndarray) else jax.device_put(array, target.sharding)


def _finish(array: Any, leaf: Any, spec: Spec) -> Any:
    """Turns the array that Orbax made into a leaf of the kind of ``leaf``."""
    if isinstance(leaf, np.ndarray | np.generic):
        return array
    array = to_device(array) if isinstance(array, np.ndarray) else array
    return jax.random.wrap_key_data(array, impl=spec.impl) if spec.impl else array


def _nest(leaves: dict[tuple[str, ...], Any]) -> Any:
    if () in leaves:
        return leaves[()]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return tree
