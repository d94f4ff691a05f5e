"""Pytrees: key paths of leaves, members of a stacked tree, many members in one program."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike


def to_device(values: ArrayLike, dtype: DTypeLike | None = None) -> jax.Array:
    """Copies numbers of the host to the device; what lies there already is only converted.

    Like ``jnp.asarray``, which compiles a program for each shape that it is given.
    """
    if isinstance(values, jax.Array):
        return jnp.asarray(values, dtype)
    # a copy of its own: on CPU the device may take the memory that it is given for its own
    return jax.device_put(np.array(values, dtype))


@jax.jit
def member(tree: Any, number: jax.Array | int) -> Any:
    """Takes one member of a tree whose leaves have a leading axis of members."""
    return jax.tree.map(lambda leaf: leaf[number], tree)


@jax.jit
def stack(members: Sequence[Any]) -> Any:
    """Stacks trees of one form along a new leading axis, that of members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def choose(flags: jax.Array, ours: Any, theirs: Any) -> Any:
    """Takes leaves, or rows of them, where flags are true from one tree, all others from another.

    Args:
      flags: ``bool [...]``; ``[]`` chooses whole trees, ``[B]`` along the leading axis.
      ours, theirs: trees with leaves ``[..., ...]``.
    """

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(flags.reshape(*flags.shape, *[1] * (jnp.ndim(a) - flags.ndim)), a, b)

    return jax.tree.map(one, ours, theirs)


def precise(tree: Any) -> Any:
    """Returns floats as float32 or better, all else as it is."""

    def one(leaf: jax.Array) -> jax.Array:
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if floats else leaf

    return jax.tree.map(one, tree)


def in_chunks(fn: Callable[[jax.Array], Any], count: int, size: int) -> Any:
    """Maps ``fn`` over ``0 .. count - 1``, a few at a time, to bound the memory.

    Args:
      fn: from places ``int32 [size]`` to a tree with leaves ``[size, ...]``.
      count: static; the last chunk repeats the last place.
      size: of a chunk, at most.

    Returns:
      The tree, with leaves ``[count, ...]``.
    """
    size = min(size, count)
    turns = -(-count // size)
    places = jnp.minimum(jnp.arange(turns * size, dtype=jnp.int32), count - 1)
    found = jax.lax.map(fn, places.reshape(turns, size))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)


def ensemble(
    fn: Callable[..., Any],
    in_axes: Sequence[Any],
    *,
    vectorise: bool | None = None,
    batch_size: int | None = None,
) -> Callable[..., Any]:
    """Maps ``fn`` over a leading axis, in the way that pays on this back end.

    On CPU one member after the other (``lax.map``): vectorised members would become
    grouped convolutions there, 2 to 3 times slower than a loop. On accelerators all
    members at once (``vmap``), or ``batch_size`` at a time where memory is short.

    Args:
      fn: a function of positional pytrees.
      in_axes: one entry an argument, each a prefix of that argument with leaves
        ``0`` (mapped) or ``None`` (shared by all members).
      vectorise: all members at once, or one after the other; default: by back end.
      batch_size: vectorised members at a time; ``None`` for all.

    Returns:
      A function of the same arguments; every leaf of its result has a leading axis.
    """

    def mapped(*args: Any) -> Any:
        at_once = jax.default_backend() != "cpu" if vectorise is None else vectorise
        if at_once and batch_size is None:
            return jax.vmap(fn, tuple(in_axes))(*args)
        leaves, treedef = jax.tree.flatten(args)
        mapped_leaves = jax.tree.leaves(
            jax.tree.map(
                lambda axis, part: jax.tree.map(lambda _: axis is not None, part),
                tuple(in_axes),
                args,
                is_leaf=lambda node: node is None,
            )
        )
        varying = [leaf for leaf, own in zip(leaves, mapped_leaves, strict=True) if own]

        def member(theirs: list[Any]) -> Any:
            rest = iter(theirs)
            merged = [
                next(rest) if own else leaf for leaf, own in zip(leaves, mapped_leaves, strict=True)
            ]
            return fn(*jax.tree.unflatten(treedef, merged))

        return jax.lax.map(member, varying, batch_size=batch_size if at_once else None)

    return mapped


def divide_like(x: Any, tree: Any) -> Any:
    """Divides what was computed of examples over the devices of a mesh that divide these.

    A compiler may else leave it whole, or divided otherwise, where parameters are divided along
    the same axis. Within a program, which knows the mesh of ``x`` but not where it lies, the
    mesh's first axis is taken, as batches are divided; without a mesh nothing changes.

    Args:
      x: pytree of ``[B, ...]``, the examples.
      tree: pytree; leaves ``[B, ...]`` are divided, those that do not divide stay as they are.
    """
    for leaf in (leaf for leaf in jax.tree.leaves(x) if isinstance(leaf, jax.Array)):
        where = jax.typeof(leaf).sharding if isinstance(leaf, jax.core.Tracer) else leaf.sharding
        if leaf.ndim and isinstance(where, NamedSharding) and not where.mesh.empty:
            mesh = where.mesh.abstract_mesh
            traced, first = isinstance(leaf, jax.core.Tracer), mesh.axis_names[:1]
            axes = first if traced else (*where.spec, None)[0]
            axes = (axes,) if isinstance(axes, str) else axes or ()
            types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
            if axes and all(types[axis] == AxisType.Auto for axis in axes):
                return _divide(tree, mesh=mesh, axes=tuple(axes), count=leaf.shape[0])
    return tree


@partial(jax.jit, static_argnames=("mesh", "axes", "count"))
def _divide(tree: Any, *, mesh: Any, axes: tuple[str, ...], count: int) -> Any:
    devices = math.prod(mesh.shape[axis] for axis in axes)

    def one(leaf: jax.Array) -> jax.Array:
        if not leaf.ndim or leaf.shape[0] != count or count % devices:
            return leaf
        rest = (PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
        spec = PartitionSpec(axes, *rest)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)


def path_name(keys: Sequence[Any]) -> str:
    """Returns the key path of a leaf as text, ``params/fc1/kernel``."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by key path, in the order of the tree."""
    return {path_name(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
