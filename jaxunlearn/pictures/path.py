"""The path of a class through a network, before and after it was unlearned."""

import itertools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution import Unit, rules, seeds, structure
from jaxunlearn.attribution.rules import Rules
from jaxunlearn.models import functionalize
from jaxunlearn.pictures.flow import Flow, edited, messages, totals
from jaxunlearn.pictures.images import overlay, scale_of, to_rgb
from jaxunlearn.pictures.network import Column, Panel, draw
from jaxunlearn.pictures.style import short, signed
from jaxunlearn.types import Apply, Model, Variables

__all__ = ["choose", "save_path"]

# z+ keeps stacks of convolutions from noise, dense layers keep both signs
_RULES = rules.epsilon_plus()


def save_path(
    path: str | os.PathLike[str],
    model: Model | Apply,
    original: Variables,
    unlearned: Variables,
    x: jax.typing.ArrayLike,
    y: jax.typing.ArrayLike,
    *,
    rules: Rules = _RULES,
    layers: int | Sequence[str] = 6,
    neurons: int = 12,
    title: str | None = None,
) -> None:
    """Draws which neurons carry a class, before and after unlearning, as PNG.

    A column is a layer, a circle one of its neurons (output units or channels), a line the
    relevance that flows from a neuron to one of the column before. Relevance starts
    as the logit of ``y`` and is the mean over the examples, summed over positions; the
    two networks are on one scale:

    * circle: ``R_k``, red positive, blue negative; colour and area relative to the
      largest of its column in either network;
    * line: ``M[k, j]``, what of ``R_j`` came through ``k``
      (:func:`jaxunlearn.pictures.flow.messages`); width relative to the largest between
      the two columns in either network; none between branches side by side;
    * ring: the share of a neuron's weights (incoming or outgoing, the larger) that differ
      between the two networks, a full ring being all of them;
    * picture: the mean image under the mean relevance of its pixels.

    Both show the same neurons: the ``neurons`` of largest ``|R_k|`` in either.

    Args:
      path: of the PNG; an existing file is replaced.
      model: see :func:`jaxunlearn.functionalize`.
      original, unlearned: variables of one structure.
      x: ``[B, ...]``, examples of the class as the network reads them; 16 to 64 are enough.
      y: the class, or labels ``int [B]``.
      rules: of the propagation; by default z+ for convolutions, epsilon for all else.
      layers: keys of the layers to draw (:func:`jaxunlearn.structure`), in execution
        order, or at most how many, spread evenly and the last among them.
      neurons: at most so many of a layer.
      title: of the picture.

    Raises:
      ValueError: arguments out of range, a layer that is not there, ``unlearned`` of
        another structure, a relevance that is not finite.
      NotImplementedError: relevance propagation does not cover the network.
      UserError: the file cannot be written.

    Source: own; the neuronal path is that of arXiv 2410.23693.
    """
    if neurons < 1:
        raise ValueError(f"neurons: expected a positive number, got {neurons}")
    fn, x = functionalize(model).apply, jnp.asarray(x)
    units = structure(fn, original, x)
    shown = _shown(units, layers)
    rings = edited(original, unlearned, units)
    seed = seeds.label(y, times_logit=True)
    compute = totals(fn, rules, shown)
    flows = [compute(variables, x, seed) for variables in (original, unlearned)]
    _check_finite(flows)
    chosen = [choose([f.neurons[u.key] for f in flows], neurons) for u in shown]
    lines: list[list[np.ndarray]] = [[], []]
    for place, (earlier, later) in enumerate(itertools.pairwise(shown)):
        send = messages(fn, rules, units, earlier, later)
        for number, variables in enumerate((original, unlearned)):
            received = send(variables, x, seed, chosen[place], chosen[place + 1])
            lines[number].append(received)
    columns = [_columns(flow, shown, chosen, rings) for flow in flows]
    pictures = _pictures(np.asarray(x), flows)
    panels = [
        Panel(name, _about(flow, y), picture, made, edges)
        for name, flow, picture, made, edges in zip(
            ("original", "unlearned"), flows, pictures, columns, lines, strict=True
        )
    ]
    draw(path, panels, title)


def choose(strengths: Sequence[np.ndarray], count: int) -> np.ndarray:
    """``int [n]``: which neurons of a layer to draw, from top to bottom.

    All in their own order if there are no more than ``count``; otherwise those of largest
    magnitude in either network, ordered by their relevance in the first.
    """
    first = strengths[0]
    if len(first) <= count:
        return np.arange(len(first))
    largest = np.max(np.abs(np.stack(strengths)), axis=0)
    kept = np.argsort(-largest, kind="stable")[:count]
    ordered: np.ndarray = kept[np.argsort(-first[kept], kind="stable")]
    return ordered


def _shown(units: Sequence[Unit], layers: int | Sequence[str]) -> list[Unit]:
    if isinstance(layers, int):
        if layers < 2:
            raise ValueError(f"layers: expected at least 2, or keys, got {layers}")
        places = np.linspace(0, len(units) - 1, min(layers, len(units))).round().astype(int)
        return [units[place] for place in places]
    known = {unit.key: place for place, unit in enumerate(units)}
    for key in layers:
        if key not in known:
            raise ValueError(f"layers: expected some of {', '.join(known)}, got {key!r}")
    order = [known[key] for key in layers]
    if order != sorted(set(order)) or not order:
        raise ValueError(f"layers: expected keys in execution order, got {list(layers)}")
    return [units[place] for place in order]


def _check_finite(flows: Sequence[Flow]) -> None:
    for name, flow in zip(("original", "unlearned"), flows, strict=True):
        for key, values in flow.neurons.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite relevance, got NaN or inf at {key}")


def _columns(
    flow: Flow, shown: Sequence[Unit], chosen: Sequence[np.ndarray], rings: dict[str, np.ndarray]
) -> list[Column]:
    made = []
    nested = any(short(unit.key)[1] for unit in shown)
    for unit, neurons in zip(shown, chosen, strict=True):
        strength, ring = flow.neurons[unit.key], rings[unit.key]
        whole = np.abs(strength).sum()
        share = np.abs(strength[neurons]).sum() / whole if whole else 0.0
        name, within = short(unit.key)
        about = [within] if nested else []
        about += [f"{len(neurons)} of {unit.out_features}", f"{share:.0%} of |R|"]
        about += [f"{int((ring == 1).sum())} rewritten"] if (ring == 1).any() else []
        made.append(Column(name, "\n".join(about), neurons, strength[neurons], ring[neurons]))
    return made


def _about(flow: Flow, y: jax.typing.ArrayLike) -> str:
    labels = np.broadcast_to(np.asarray(y), flow.logits.shape[:1])
    logit = flow.logits[np.arange(len(labels)), labels].mean()
    right = int((flow.logits.argmax(-1) == labels).sum())
    words = f"class {labels[0]}" if (labels == labels[0]).all() else "the labels"
    return f"{words}: predicted for {right} of {len(labels)}, mean logit {signed(logit, 3)}"


def _pictures(x: np.ndarray, flows: Sequence[Flow]) -> list[np.ndarray | None]:
    """The mean image under the relevance of each network, on one scale."""
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        return [None for _ in flows]
    mean = to_rgb(x.astype(np.float32).mean(axis=0, keepdims=True))[0]
    heats = [flow.input.astype(np.float64).reshape(*mean.shape[:2], -1).sum(-1) for flow in flows]
    scale = scale_of(np.stack(heats))
    return [overlay(mean, heat, scale) for heat in heats]
