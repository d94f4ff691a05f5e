"""The neurons of a network and where their weights lie, read off its trace; edits of these."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution import Relevance, Unit, head, structure
from jaxunlearn.core.errors import brief, expect_flags, expect_one_of, expect_positive
from jaxunlearn.core.trees import named_leaves, path_name
from jaxunlearn.core.types import Apply, Key, Variables
from jaxunlearn.jaxprs.structure import Read, read_by_head

WEIGHTS = ("incoming", "outgoing", "class")


class Place(NamedTuple):
    """Weights of a layer's neurons.

    Attributes:
      path: key path of the leaf, joined by ``/``.
      axis: which of its axes the neurons run along.
      classes: the axis of the classes, where only those to be forgotten are edited.
    """

    path: str
    axis: int
    classes: int | None = None


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layer:
    """Neurons that are compared with each other.

    Attributes:
      name: the kernel whose output features they are; ``inputs of KERNEL`` for what a
        head reads that is not the units of one layer.
      width: how many there are.
      made_by: the unit that produces them, once for each time that it is applied.
      read_by: the units known to read neuron ``n`` as their input feature ``n``.
      head: the last unit of the network, if it is among those.
      axis: of what the head reads, the one that the neurons run along.
      signed: whether the head reads what no one layer makes and what may be negative, such as
        the output of a layer norm behind a sum of branches.
      places: their weights that are edited.
    """

    name: str
    width: int
    made_by: tuple[Unit, ...]
    read_by: tuple[Unit, ...]
    head: Unit | None = None
    axis: int = -1
    signed: bool = False
    places: tuple[Place, ...] = ()

    def relevance(self, found: Relevance) -> jax.Array:
        """Sums relevance over positions and applications, ``float32 [B, width]``."""
        if self.head is not None:
            parts = [jnp.moveaxis(found.inputs[self.head.key], self.axis, -1)]
        else:
            parts = [found.neurons[unit.key] for unit in self.made_by]
        summed = [
            jnp.sum(part.astype(jnp.float32), axis=tuple(range(1, part.ndim - 1))) for part in parts
        ]
        return sum(summed[1:], summed[0])

    @property
    def out_axis(self) -> int | None:
        """Returns the one axis of the stored kernel that the neurons run along, if there is one."""
        axes = {unit.out_axis for unit in self.made_by}
        return axes.pop() if len(axes) == 1 else None

    def expect_width(self, name: str, most: float) -> None:
        """Raises ``ValueError`` for an argument that asks for more neurons than there are."""
        if most > self.width:
            raise ValueError(
                f"{name}: expected at most the {self.width} inputs of {self.read_by[0].kernel}, "
                f"got {most}; neurons= or share= says how many (80 neurons by default)"
            )


def find_layers(
    fn: Apply,
    relevance: Callable[..., Relevance],
    variables: Variables,
    x: Any,
    layers: str | tuple[str, ...],
    weights: tuple[str, ...] | None,
    biases: bool,
) -> tuple[Layer, ...]:
    """Finds the layers of a network to choose neurons from, in execution order.

    Where the head reads something signed that no one layer makes, the network has a stream that
    its blocks add to, and all behind reads every feature of it: ``"all"`` leaves out the layers
    that write to it, and takes those whose neurons another unit reads one by one.

    Args:
      fn: ``(variables, x) -> logits [1, K]``.
      relevance: its relevance, ``(variables, x) -> Relevance``.
      variables: arrays, or their shapes and dtypes.
      x: one example, ``[1, ...]``, or its shape and dtype.
      layers, weights, biases: as in :func:`jaxunlearn.neuron_path`.

    Raises:
      ValueError: the logits are not ``[B, K]``, the head cannot be edited, no layer
        matches, or weights were asked for that cannot be told apart.
    """
    logits = jax.eval_shape(fn, variables, x).shape
    if len(logits) != 2:
        raise ValueError(f"model: expected logits [B, K], got shape {logits}")
    units, read = structure(fn, variables, x), read_by_head(fn, variables, x)
    _check_head(head(fn, variables, x), units[-1], read)
    found = [_penultimate(units, read)]
    if layers != "last":
        shapes = jax.eval_shape(relevance, variables, x)
        inner = [layer for layer in _inner(units) if _readable(layer, shapes)]
        if layers == "all" and found[0].signed:
            inner = [layer for layer in inner if layer.read_by]
        found = inner + found
    if not isinstance(layers, str):
        found = _matching(found, layers)
    placed = [
        dataclasses.replace(layer, places=_places(layer, weights, biases, variables))
        for layer in found
    ]
    if layers != "all":
        for layer in placed:
            _check_places(layer, weights)
    kept = tuple(layer for layer in placed if layer.places)
    if not kept:
        raise ValueError(f"weights: expected some that can be told apart, got {weights!r}")
    if biases and not any({*layer.places} & {*_bias_places(layer, variables)} for layer in kept):
        names = ", ".join(layer.name for layer in kept)
        raise ValueError(f"biases: expected one added straight to what {names} yields, got none")
    return kept


def _penultimate(units: tuple[Unit, ...], read: Read) -> Layer:
    """Returns what the head reads, be it the units of one layer or not."""
    head = units[-1]
    made_by = tuple(unit for unit in units if unit.kernel == head.producer)
    name = head.producer or f"inputs of {head.kernel}"
    signed = head.producer is None and not read.nonnegative
    assert read.features is not None
    return Layer(name, head.in_features, made_by, (head,), head, read.features, signed)


def _inner(units: tuple[Unit, ...]) -> list[Layer]:
    """Lists the neurons of every other unit whose stored kernel has an axis for them."""
    head, found = units[-1], []
    for kernel in dict.fromkeys(unit.kernel for unit in units):
        made_by = tuple(unit for unit in units if unit.kernel == kernel)
        read_by = tuple(u for u in units if u.producer == kernel and u.in_axis is not None)
        layer = Layer(kernel, made_by[0].out_features, made_by, read_by)
        if kernel not in (head.kernel, head.producer) and layer.out_axis is not None:
            found.append(layer)
    return found


def _readable(layer: Layer, shapes: Relevance) -> bool:
    """Tells whether relevance comes as ``[B, ..., width]``."""
    found = [shapes.neurons[unit.key].shape for unit in layer.made_by]
    return all(shape[0] == 1 and shape[-1] == layer.width for shape in found)


def _matching(found: list[Layer], patterns: tuple[str, ...]) -> list[Layer]:
    names = [layer.name for layer in found]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"layers: expected patterns found in {', '.join(names)}, got {pattern!r}"
            )
    return [layer for layer in found if any(re.search(p, layer.name) for p in patterns)]


def _places(
    layer: Layer, weights: tuple[str, ...] | None, biases: bool, variables: Variables
) -> tuple[Place, ...]:
    """Lists those of the asked weights that can be told apart; each once."""
    if weights is None:
        weights = _default(layer)
    places: list[Place] = []
    if "incoming" in weights and layer.out_axis is not None:
        places += [Place(unit.kernel, layer.out_axis) for unit in layer.made_by]
        places += _bias_places(layer, variables) if biases else []
    if "outgoing" in weights:
        places += [Place(u.kernel, u.in_axis) for u in layer.read_by if u.in_axis is not None]
    elif "class" in weights and layer.head is not None:
        assert layer.head.in_axis is not None
        places.append(Place(layer.head.kernel, layer.head.in_axis, layer.head.out_axis))
    return tuple(dict.fromkeys(places))


def _default(layer: Layer) -> tuple[str, ...]:
    """Returns the published weights; a layer that the head does not read has none of a class."""
    if layer.out_axis is not None:
        return ("incoming", "class")
    return ("class",) if layer.signed else ("outgoing",)


def _bias_places(layer: Layer, variables: Variables) -> list[Place]:
    """Lists biases with one number a neuron; axes of size 1 may stand for the positions."""
    paths, leaves = [u.bias for u in layer.made_by if u.bias is not None], named_leaves(variables)
    shapes = {path: leaves[path].shape for path in paths}
    return [
        Place(path, shape.index(layer.width))
        for path, shape in shapes.items()
        if math.prod(shape) == layer.width and layer.width in shape
    ]


def _check_places(layer: Layer, weights: tuple[str, ...] | None) -> None:
    """Raises ``ValueError`` for a layer without the weights that were asked for."""
    weights = weights or ()
    if "incoming" in weights and layer.out_axis is None:
        reason = f"the inputs of {layer.read_by[0].kernel} are not the units of one layer"
        if layer.made_by:
            reason = f"the units of {layer.name} do not lie along one axis of a stored kernel"
        raise ValueError(f"weights: expected 'outgoing' or 'class', as {reason}, got 'incoming'")
    if "outgoing" in weights and not layer.read_by:
        raise ValueError(
            f"weights: expected 'incoming', as no unit is known to read the neurons of "
            f"{layer.name} one by one, got 'outgoing'"
        )
    if not layer.places:
        raise ValueError(
            f"weights: expected 'incoming' or 'outgoing', as the neurons of {layer.name} "
            "are not what the head reads, got 'class'"
        )


def _check_head(head: Unit | None, last: Unit, read: Read) -> None:
    """Raises ``ValueError`` unless it makes logits of ``[B, ..., n]`` and is stored with axes."""
    if head is None or head.key != last.key:
        raise ValueError(
            "model: expected logits that are the outputs of the last linear operation, got "
            f"something else made of {last.key}"
        )
    if None in (head.in_axis, head.out_axis):
        raise ValueError(
            "model: expected a last linear operation whose kernel is a leaf of the variables, "
            "or one transposed, reshaped or scaled by constants, with one axis of inputs and "
            f"one of classes, got {head.kernel} with axes {head.in_axis} and {head.out_axis}"
        )
    if read.shape[0] != 1 or read.examples != 0 or read.features is None:
        raise ValueError(
            f"model: expected {head.key} to read [1, {head.in_features}] for one image, or that "
            f"at each position, got {list(read.shape)}"
        )


NOISES: dict[str, Callable[..., jax.Array]] = {
    "gaussian": jax.random.normal,
    "laplace": jax.random.laplace,
}
"""Edits that add noise, with its distribution."""

_FACTORS: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "zero": lambda w, scale: jnp.zeros_like(w),
    "scale": lambda w, scale: scale * w,
    "sign": lambda w, scale: -w,
}

DRAWN = (*NOISES, "resample")
"""Edits that draw random numbers."""

EDITS = (*_FACTORS, *DRAWN)


def check_edit(edit: str, scale: float, weights: tuple[str, ...] | None, biases: bool) -> None:
    """Raises ``ValueError`` for an unknown edit, or arguments that do not go with each other."""
    expect_one_of(EDITS, edit=edit)
    expect_positive(scale=scale)
    expect_flags(biases=biases)
    if edit == "scale" and scale == 1:
        raise ValueError("scale: expected another factor than 1 for edit='scale', got 1")
    known = isinstance(weights, tuple | list | set) and all(one in WEIGHTS for one in weights)
    if weights is not None and not (known and weights):
        raise ValueError(f"weights: expected some of {WEIGHTS}, got {brief(weights)}")
    if biases and weights is not None and "incoming" not in weights:
        raise ValueError(f"biases: expected weights with 'incoming', got {weights!r}")


def masks_of(
    variables: Variables, layers: Sequence[Layer], chosen: Sequence[jax.Array], classes: jax.Array
) -> dict[str, jax.Array]:
    """Marks the weights to edit: a mask for each leaf, which broadcasts against it.

    Args:
      variables: where the leaves lie.
      layers: whose places are meant.
      chosen: for each layer ``bool [n]``.
      classes: ``bool [K]``, those to be forgotten.
    """
    found: dict[str, jax.Array] = {}
    leaves = named_leaves(variables)
    for layer, neurons in zip(layers, chosen, strict=True):
        for place in layer.places:
            rank = leaves[place.path].ndim
            mask = _along(neurons, place.axis, rank)
            if place.classes is not None:
                mask &= _along(classes, place.classes, rank)
            # one kernel may be the incoming of a layer and the outgoing of another
            found[place.path] = found[place.path] | mask if place.path in found else mask
    return found


def edit_weights(
    variables: Variables, masks: Mapping[str, jax.Array], edit: str, scale: float, key: Key | None
) -> Variables:
    """Edits the masked weights; the rest of the tree is the same.

    Args:
      masks: leaf path -> a mask that broadcasts against the leaf.
      edit: one of :data:`EDITS`.
      scale: the factor of ``"scale"``, the spread of the noises.
      key: of what is drawn; folded with the place of each masked leaf in the order of their paths.
    """
    order = sorted(masks)

    def one(keys: Any, leaf: jax.Array) -> jax.Array:
        path = path_name(keys)
        if path not in masks:
            return leaf
        if edit in DRAWN:
            assert key is not None
            own = jax.random.fold_in(key, order.index(path))
            if edit == "resample":
                edited = _resampled(leaf, masks[path], own)
            else:
                edited = leaf + scale * NOISES[edit](own, leaf.shape, leaf.dtype)
        else:
            edited = _FACTORS[edit](leaf, scale)
        return jnp.where(masks[path], edited, leaf)

    return jax.tree_util.tree_map_with_path(one, variables)


def _resampled(leaf: jax.Array, mask: jax.Array, key: Key) -> jax.Array:
    """Draws each weight from those of the leaf that are not masked, with replacement.

    From all of them where every one is masked.
    """
    others = ~jnp.broadcast_to(mask, leaf.shape).ravel()
    counts = jnp.cumsum(jnp.where(jnp.any(others), others, True).astype(jnp.int32))
    place = jax.random.randint(key, leaf.shape, 0, counts[-1])
    # the weight with so many others before it
    return leaf.ravel()[jnp.searchsorted(counts, place, side="right")]


def _along(mask: jax.Array, axis: int, rank: int) -> jax.Array:
    """Lays a mask along one of ``rank`` axes."""
    return jnp.expand_dims(mask, [d for d in range(rank) if d != axis])
