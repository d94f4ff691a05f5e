"""Which neurons a network has, and where their weights lie; read off its trace.

Edits of the weights of chosen neurons.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution import Relevance, Unit, features, head, structure
from jaxunlearn.core.types import Apply, Key, Variables

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
      places: their weights that are edited.
    """

    name: str
    width: int
    made_by: tuple[Unit, ...]
    read_by: tuple[Unit, ...]
    head: Unit | None = None
    places: tuple[Place, ...] = ()

    def relevance(self, found: Relevance) -> jax.Array:
        """``float32 [B, width]``: summed over positions and applications."""
        if self.head is not None:
            parts = [found.inputs[self.head.key]]
        else:
            parts = [found.neurons[unit.key] for unit in self.made_by]
        summed = [
            jnp.sum(part.astype(jnp.float32), axis=tuple(range(1, part.ndim - 1))) for part in parts
        ]
        return sum(summed[1:], summed[0])

    @property
    def out_axis(self) -> int | None:
        """The one axis of the stored kernel that the neurons run along, if there is one."""
        axes = {unit.out_axis for unit in self.made_by}
        return axes.pop() if len(axes) == 1 else None


def find_layers(
    fn: Apply,
    relevance: Callable[..., Relevance],
    variables: Variables,
    x: Any,
    layers: str | tuple[str, ...],
    weights: tuple[str, ...] | None,
    biases: bool,
) -> tuple[Layer, ...]:
    """The layers of a network to choose neurons from, in execution order.

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
    read = jax.eval_shape(features(fn), variables, x).shape
    units = structure(fn, variables, x)
    _check_head(head(fn, variables, x), units[-1], read)
    found = [_penultimate(units)]
    if layers != "last":
        shapes = jax.eval_shape(relevance, variables, x)
        found = [layer for layer in _inner(units) if _readable(layer, shapes)] + found
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


def leaf(variables: Variables, path: str) -> Any:
    """The leaf at a key path; :class:`KeyError` if there is none."""
    for where, found in jax.tree_util.tree_leaves_with_path(variables):
        if jax.tree_util.keystr(where, simple=True, separator="/") == path:
            return found
    raise KeyError(path)


def _penultimate(units: tuple[Unit, ...]) -> Layer:
    """What the head reads, whether or not it is the units of one layer."""
    head = units[-1]
    made_by = tuple(unit for unit in units if unit.kernel == head.producer)
    name = head.producer or f"inputs of {head.kernel}"
    return Layer(name, head.in_features, made_by, (head,), head)


def _inner(units: tuple[Unit, ...]) -> list[Layer]:
    """The neurons of every other unit whose stored kernel has an axis for them."""
    head, found = units[-1], []
    for kernel in dict.fromkeys(unit.kernel for unit in units):
        made_by = tuple(unit for unit in units if unit.kernel == kernel)
        read_by = tuple(u for u in units if u.producer == kernel and u.in_axis is not None)
        layer = Layer(kernel, made_by[0].out_features, made_by, read_by)
        if kernel not in (head.kernel, head.producer) and layer.out_axis is not None:
            found.append(layer)
    return found


def _readable(layer: Layer, shapes: Relevance) -> bool:
    """Whether relevance comes as ``[B, ..., width]``."""
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
    """Those of the asked weights that can be told apart; each once."""
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
    """As published; a layer that the head does not read has no weights of a class."""
    return ("outgoing",) if layer.out_axis is None else ("incoming", "class")


def _bias_places(layer: Layer, variables: Variables) -> list[Place]:
    """Biases with one number for each neuron; axes of size 1 may stand for the positions."""
    paths = [unit.bias for unit in layer.made_by if unit.bias is not None]
    shapes = {path: leaf(variables, path).shape for path in paths}
    return [
        Place(path, shape.index(layer.width))
        for path, shape in shapes.items()
        if math.prod(shape) == layer.width and layer.width in shape
    ]


def _check_places(layer: Layer, weights: tuple[str, ...] | None) -> None:
    """Whether a layer that was asked for has the weights that were asked for."""
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


def _check_head(found: Unit | None, last: Unit, read: tuple[int, ...]) -> None:
    """Whether the logits are its outputs, it reads ``[B, n]`` and is stored with both axes."""
    if found is None or found.key != last.key:
        raise ValueError(
            "model: expected logits that are the outputs of the last linear operation, got "
            f"something else made of {last.key}"
        )
    head = found
    if None in (head.in_axis, head.out_axis):
        raise ValueError(
            "model: expected a last linear operation whose kernel is a leaf of the variables, "
            "or one transposed, reshaped or scaled by constants, with one axis of inputs and "
            f"one of classes, got {head.kernel} with axes {head.in_axis} and {head.out_axis}"
        )
    if read != (1, head.in_features):
        raise ValueError(
            f"model: expected {head.key} to read [1, {head.in_features}] for one image, "
            f"got {list(read)}"
        )


_EDITS: dict[str, Callable[[jax.Array, float, Key], jax.Array]] = {
    "zero": lambda w, scale, key: jnp.zeros_like(w),
    "scale": lambda w, scale, key: scale * w,
    "sign": lambda w, scale, key: -w,
    "gaussian": lambda w, scale, key: w + scale * jax.random.normal(key, w.shape, w.dtype),
    "laplace": lambda w, scale, key: w + scale * jax.random.laplace(key, w.shape, w.dtype),
}

EDITS = tuple(_EDITS)


def masks(
    variables: Variables, layers: Sequence[Layer], chosen: Sequence[jax.Array], classes: jax.Array
) -> dict[str, jax.Array]:
    """Which weights to edit: a mask for each leaf, which broadcasts against it.

    Args:
      variables: where the leaves lie.
      layers: whose places are meant.
      chosen: for each layer ``bool [n]``.
      classes: ``bool [K]``, those to be forgotten.
    """
    found: dict[str, jax.Array] = {}
    for layer, neurons in zip(layers, chosen, strict=True):
        for place in layer.places:
            rank = leaf(variables, place.path).ndim
            mask = _along(neurons, place.axis, rank)
            if place.classes is not None:
                mask &= _along(classes, place.classes, rank)
            # one kernel may be the incoming of a layer and the outgoing of another
            found[place.path] = found[place.path] | mask if place.path in found else mask
    return found


def edit_weights(
    variables: Variables, masks: Mapping[str, jax.Array], edit: str, scale: float, key: Key
) -> Variables:
    """The same tree with the masked weights edited.

    Args:
      masks: leaf path -> a mask that broadcasts against the leaf.
      edit: one of :data:`EDITS`.
      scale: the factor of ``"scale"``, the spread of the noises.
      key: split into one for each masked leaf, in the order of their paths.
    """
    order = sorted(masks)

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in masks:
            return leaf
        own = jax.random.fold_in(key, order.index(name))
        return jnp.where(masks[name], _EDITS[edit](leaf, scale, own), leaf)

    return jax.tree_util.tree_map_with_path(one, variables)


def _along(mask: jax.Array, axis: int, rank: int) -> jax.Array:
    """A mask that runs along one of ``rank`` axes."""
    return jnp.expand_dims(mask, [d for d in range(rank) if d != axis])
