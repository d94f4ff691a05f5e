"""Meshes, and where each parameter lies on them: rules as data.

A rule is (regex on the parameter path, names of mesh axes); the names belong to
the *trailing* dimensions of the array, so that one rule serves dense and
convolution kernels alike. The first rule that matches wins; no rule: replicated.
Optimizer states repeat the parameters' paths and so follow the same rules.
"""

import contextlib
import functools
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxunlearn.core.errors import ConfigError, brief
from jaxunlearn.core.trees import named_leaves, path_name
from jaxunlearn.core.types import Batches

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]

PRESETS: dict[str, Rules] = {
    "single": (),
    "data": (),
    "fsdp": ((r".*", ("data",)),),
    "fsdp_tensor": (
        # kernels whose sums end in the residual stream, which lies whole on the second axis
        (r"(attention/output|mlp/down|block\d+/(out|fc2))/kernel$", ("model", "data")),
        (r"embed/embedding$", ("model", "data")),
        (r"(^|/)(blocks_|block)\d+/(\w+/)?(norm\d|output|out|down|fc2)/(scale|bias)$", (None,)),
        (r"(^|/)norm/(scale|bias)$", (None,)),
        # any other: channels, heads, hidden numbers that are made, and those that are read
        (r".*", ("data", "model")),
    ),
}
"""``single``: one device. ``data``: parameters replicated, batches divided. ``fsdp``:
batches divided and the last dimension of every parameter divided likewise. ``fsdp_tensor``: two
axes, ``data`` and ``model``; a kernel is divided over both, and over ``model`` so are the heads,
hidden numbers and channels that a layer makes (Shoeybi et al. 2019, arXiv 1909.08053)."""

MOST_TENSOR = 8
"""Devices that ``fsdp_tensor`` gives to ``model`` at most: those of one machine, whose links are
fast enough for sums in every layer."""


class Sharding(NamedTuple):
    """A mesh and the rules for parameters; hashable, so that it can be static.

    Attributes:
      mesh: the devices; batches are divided over its first axis.
      rules: see the module's docstring.
    """

    mesh: Mesh
    rules: Rules


def make_sharding(
    mesh: str = "single", rules: Rules = (), devices: Sequence[jax.Device] | int | None = None
) -> Sharding:
    """Makes a mesh over the devices with the rules of a preset.

    Args:
      mesh: a name in :data:`PRESETS`, or axes with sizes such as ``"data=2,model=4"``. Of ``N``
        devices ``fsdp_tensor`` gives ``model`` the largest power of two that divides ``N``, is at
        most ``sqrt(N)`` and at most :data:`MOST_TENSOR`.
      rules: tried before those of the preset. Axes ``data`` and ``model`` without rules have those
        of ``fsdp_tensor``.
      devices: default: all of them; a number for as many that are not here: the mesh is an
        ``AbstractMesh`` then, which tells how arrays would lie.

    Raises:
      ConfigError: unknown preset, sizes that do not multiply to the number of
        devices, a rule that names an axis the mesh does not have, a wrong regex.
    """
    here = None if isinstance(devices, int) else list(devices or jax.devices())
    count = devices if isinstance(devices, int) else len(here or ())
    if mesh in PRESETS:
        count = 1 if mesh == "single" else count
        axes_of = _two_axes(count) if mesh == "fsdp_tensor" else {"data": count}
    else:
        axes_of = _parse_axes(mesh)
    names, sizes = tuple(axes_of), tuple(axes_of.values())
    if math.prod(sizes) != count:
        raise ConfigError(
            f"mesh: expected axes for {count} devices, got {mesh!r} = {brief(math.prod(sizes))}"
        )
    rules = tuple((pattern, tuple(axes)) for pattern, axes in rules)
    for pattern, axes in rules:
        unknown = [axis for axis in axes if axis is not None and axis not in names]
        if unknown:
            raise ConfigError(
                f"rules: {pattern!r} expects mesh axes among {list(names)}, got {unknown}"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"rules: expected a regular expression, got {pattern!r}: {error}"
            ) from None
    # Auto axes: with Explicit ones, jax's default, sharded convolution kernels raise
    types = (AxisType.Auto,) * len(names)
    if here is None:
        made: Any = AbstractMesh(sizes, names, axis_types=types)
    else:
        made = Mesh(np.asarray(here[:count]).reshape(sizes), names, axis_types=types)
    own = "fsdp_tensor" if names == ("data", "model") and not rules else mesh
    return Sharding(made, rules + PRESETS.get(own, ()))


def _two_axes(count: int) -> dict[str, int]:
    fitting = [n for n in (2, 4, MOST_TENSOR) if count % n == 0 and n * n <= count]
    if count > 1 and not fitting:
        raise ConfigError(
            f"mesh: expected an even number of devices, at least 4, for fsdp_tensor, got {count}; "
            f"'data=1,model={count}' gives all to one axis"
        )
    model = max(fitting, default=1)
    return {"data": count // model, "model": model}


def _parse_axes(text: str) -> dict[str, int]:
    found = re.findall(r"(\w+)=(\d{1,18})", text)
    if ",".join(f"{name}={size}" for name, size in found) != text.replace(" ", "") or not found:
        raise ConfigError(
            f"mesh: expected one of {', '.join(PRESETS)} or axes such as 'data=2,model=4', "
            f"got {text!r}"
        )
    names = [name for name, _ in found]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"mesh: expected each axis once, got {repeated[0]} twice in {text!r}")
    return {name: int(size) for name, size in found}


def spec_of(path: str, shape: tuple[int, ...], sharding: Sharding) -> PartitionSpec:
    """Returns the partition of one array, by the first rule whose regex is found in ``path``.

    Names that do not divide their dimension, or lie before the first dimension, are
    dropped: a bias of 10 on 8 devices is replicated.
    """
    matching = (axes for pattern, axes in sharding.rules if re.search(pattern, path))
    axes = next(matching, ())[-len(shape) :] if shape else ()
    sizes = shape[len(shape) - len(axes) :]
    fitting = [
        axis if axis is not None and size % sharding.mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, sizes, strict=True)
    ]
    return PartitionSpec(*[None] * (len(shape) - len(axes)), *fitting)


def check_divides(tree: Any, sharding: Sharding | None) -> None:
    """Checks that each mesh axis that the rules name divides a parameter at all.

    Args:
      tree: variables, or their shapes and dtypes.

    Raises:
      ConfigError: one divides none, so that its devices would all hold the same.
    """
    if sharding is None or not jax.tree.leaves(tree):
        return
    named = {axis for _, axes in sharding.rules for axis in axes if axis is not None}
    used = {
        axis
        for path, leaf in named_leaves(tree).items()
        for axis in spec_of(path, leaf.shape, sharding)
    }
    sizes = sharding.mesh.shape
    if idle := sorted(axis for axis in named - used if sizes[axis] > 1):
        raise ConfigError(
            f"mesh: expected sizes that divide parameters, got {idle[0]}={sizes[idle[0]]}, which "
            "divides none of this network's"
        )


def _shardings(tree: Any, sharding: Sharding) -> Any:
    def one(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return NamedSharding(sharding.mesh, PartitionSpec())
        return NamedSharding(sharding.mesh, spec_of(name, leaf.shape, sharding))

    return jax.tree_util.tree_map_with_path(one, tree)


def constrain(tree: Any, sharding: Sharding | None) -> Any:
    """Keeps parameters, and what repeats their paths, in place inside a compiled function."""
    if sharding is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, _shardings(tree, sharding))


def constrain_batches(batches: Batches, sharding: Sharding | None) -> Batches:
    """Divides each batch over the mesh's first axis, inside a compiled function."""
    if sharding is None:
        return batches
    axis = sharding.mesh.axis_names[0]
    size = sharding.mesh.shape[axis]

    def one(leaf: jax.Array) -> jax.Array:
        # a batch that does not divide stays whole on every device
        spec = PartitionSpec(axis) if leaf.shape[0] % size == 0 else PartitionSpec()
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(sharding.mesh, spec))

    return jax.tree.map(one, batches)


def tell_undivided(size: int, sharding: Sharding | None) -> None:
    """Warns where a batch does not divide over the mesh's first axis, and so nothing is gained."""
    if sharding is not None:
        devices = sharding.mesh.shape[sharding.mesh.axis_names[0]]
        if size % devices:
            warnings.warn(
                f"batch_size: batches of {size} do not divide over {devices} devices: each "
                "computes all of them",
                stacklevel=3,
            )


def dividing(sharding: Sharding | None) -> contextlib.AbstractContextManager[Any]:
    """Tells networks that are traced within which mesh their batches are divided over."""
    if sharding is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh)


def keep_divided(x: jax.Array) -> jax.Array:
    """Keeps an activation ``[B, ...]`` divided as batches are; without a mesh it is as it was.

    For networks whose parameters are divided along the same axis: a compiler may else gather the
    batch instead of the parameters. What does not divide stays as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.axis_types[0] != AxisType.Auto or x.shape[0] % mesh.axis_sizes[0]:
        return x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names[0], *rest))


def abstract(tree: Any, sharding: Sharding) -> Any:
    """Shapes and dtypes of a tree, with the shardings that its rules give."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        _shardings(tree, sharding),
    )


def place(tree: Any, sharding: Sharding) -> Any:
    """Lays a parameter tree out on the mesh; may share memory with what was given."""
    return jax.tree.map(lay, tree, _shardings(tree, sharding))


def replicate(tree: Any, sharding: Sharding) -> Any:
    """Lays a tree out whole on every device; may share memory with what was given."""
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: lay(leaf, everywhere), tree)


def lay(leaf: Any, where: NamedSharding) -> jax.Array:
    """Lays one array out, over the devices of all processes, too; may share memory with it.

    Args:
      leaf: an array of this process, the same in every process, whole; or one that is laid out
        over several already.
    """
    if where.is_fully_addressable:
        return jax.device_put(leaf, where)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf if leaf.sharding == where else _relaid(where)(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = lay(jax.random.key_data(leaf), where)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, where, lambda place: whole[place])


@functools.cache
def _relaid(where: NamedSharding) -> Any:
    return jax.jit(lambda leaf: leaf, out_shardings=where)
