"""Rows of examples with columns of maps and bars.

Heat maps: what in an image, and which channels of a network, an output is due to.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.attribution import Relevance
from jaxunlearn.pictures.style import (
    INK,
    MUTED,
    Page,
    as_numbers,
    diverging,
    legend,
    overlay,
    pages,
    scale_of,
    short,
    signed,
    to_rgb,
)

# inches
_CELL, _CHART, _NEAR, _APART = 1.05, 1.5, 0.07, 0.32
_LEFT, _RIGHT, _TOP, _TITLE, _BOTTOM, _ABOVE = 1.0, 0.2, 0.6, 0.3, 0.62, 0.2

BARS = 8
"""How many neurons of a layer without positions are drawn."""


class Layer(NamedTuple):
    """A layer as columns of the picture: maps side by side, or one chart of bars.

    Attributes:
      name, within, about: written above it.
      values: ``[B, ..., features]``.
      maps: how many channels are drawn as maps; 0 for bars.
    """

    name: str
    within: str
    about: str
    values: np.ndarray
    maps: int

    @property
    def width(self) -> float:
        """In inches."""
        return self.maps * (_CELL + _NEAR) - _NEAR if self.maps else _CHART


def draw(
    path: str | os.PathLike[str],
    pictures: np.ndarray,
    heat: np.ndarray,
    layers: Sequence[Layer],
    names: Sequence[str],
    title: str | None,
) -> None:
    """Draws one row for each example, as PNG.

    Args:
      path: of the PNG.
      pictures: ``[B, H, W, 3]`` of 0 to 1.
      heat: ``[B, H, W]``.
      layers: the columns behind image, heat map and overlay.
      names: beside the rows.
      title: above all.
    """
    widths = [_CELL] * 3 + [layer.width for layer in layers]
    gaps = [_NEAR, _NEAR, *[_APART] * len(layers)]
    starts = _LEFT + np.cumsum([0.0, *(w + g for w, g in zip(widths, gaps, strict=False))])
    width = float(starts[len(widths) - 1]) + widths[-1] + _RIGHT
    top = _TOP + (_TITLE if title else 0.0)
    height = top + len(pictures) * (_CELL + _ABOVE) + _BOTTOM
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        if title:
            page.text(_LEFT, 0.26, title, fontsize=11, fontweight="bold", color=INK)
        heads = [("image", "", ""), ("relevance", "", ""), ("overlay", "", "")]
        heads += [(layer.name, layer.within, layer.about) for layer in layers]
        for start, wide, (head, within, about) in zip(starts, widths, heads, strict=False):
            middle = {"left": start + wide / 2, "ha": "center"}
            page.text(top=top - 0.43, words=within, fontsize=6.5, color=MUTED, **middle)
            page.text(top=top - 0.27, words=head, fontsize=9, fontweight="bold", **middle)
            page.text(top=top - 0.1, words=about, fontsize=6.5, color=MUTED, **middle)
        for row, picture in enumerate(pictures):
            upper = top + row * (_CELL + _ABOVE) + _ABOVE
            side = {"ha": "right", "va": "center"}
            page.text(_LEFT - 0.12, upper + _CELL / 2, names[row], fontsize=8, **side)
            _example(page, starts, upper, picture, heat[row])
            for layer, start in zip(layers, starts[3:], strict=False):
                (_maps if layer.maps else _bars)(page, start, upper, layer, row)
        legend(page.axes(_LEFT, height - 0.36, 3 * _CELL + 2 * _NEAR, 0.08), "negative", "positive")


def top_channels(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``int [count]``, ``[count]``: features of largest ``|sum of R|``, and their sums.

    Args:
      values: ``[..., features]``, of one example.
      count: how many; all if there are fewer.
    """
    sums = values.sum(axis=tuple(range(values.ndim - 1)))
    order = np.argsort(-np.abs(sums), kind="stable")[:count]
    return order, sums[order]


def _example(
    page: Page, starts: np.ndarray, top: float, picture: np.ndarray, heat: np.ndarray
) -> None:
    scale = scale_of(heat)
    page.image(starts[0], top, _CELL, picture)
    _map(page, starts[1], top, heat, scale, f"sum {signed(heat.sum(), 3)}, scale ±{scale:.2g}")
    page.image(starts[2], top, _CELL, overlay(picture, heat, scale))


def _maps(page: Page, start: float, top: float, layer: Layer, row: int) -> None:
    values = layer.values[row]
    chosen, sums = top_channels(values, layer.maps)
    scale = scale_of(values[..., chosen])
    for place, (channel, total) in enumerate(zip(chosen, sums, strict=True)):
        left = start + place * (_CELL + _NEAR)
        _map(page, left, top, values[..., channel], scale, f"{channel}:  {signed(total)}")


def _map(page: Page, left: float, top: float, heat: np.ndarray, scale: float, words: str) -> None:
    page.image(left, top, _CELL, heat, cmap=diverging(), vmin=-scale, vmax=scale)
    page.text(left + _CELL / 2, top - 0.04, words, fontsize=6.2, ha="center", color=MUTED)


def _bars(page: Page, start: float, top: float, layer: Layer, row: int) -> None:
    """The neurons of an example that have relevance at all."""
    chosen, sums = top_channels(layer.values[row], BARS)
    chosen, sums = chosen[sums != 0], sums[sums != 0]
    share = sums / np.abs(sums).max(initial=1e-300)
    axes = page.axes(start, top, _CHART, _CELL)
    axes.barh(
        range(len(chosen)), share, height=0.72, color=diverging()(0.5 + 0.36 * np.sign(share))
    )
    style: dict[str, Any] = {"va": "center", "fontsize": 6, "parse_math": False}
    for place, (channel, value, end) in enumerate(zip(chosen, sums, share, strict=True)):
        # the number of a neuron stands on the side where no bar is
        step, away, side = (0.05, "left", "right") if end > 0 else (-0.05, "right", "left")
        axes.text(-step, place, str(channel), ha=side, color=INK, **style)
        axes.text(end + step, place, signed(value), ha=away, color=MUTED, **style)
    axes.axvline(0, color="0.6", linewidth=0.6)
    # one zero line for all rows of a layer
    negative = any((top_channels(values, BARS)[1] < 0).any() for values in layer.values)
    axes.set(xlim=(-1.55 if negative else -0.4, 1.55), ylim=(BARS - 0.5, -0.5))
    axes.set_axis_off()


def save_heatmaps(
    path: str | os.PathLike[str],
    images: jax.typing.ArrayLike,
    relevance: Relevance | jax.typing.ArrayLike,
    *,
    layers: int | Sequence[str] = 3,
    channels: int = 3,
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> None:
    """Draws images with the relevance of their pixels and of a network's channels, as PNG.

    A row is an example: the image, the heat map of its relevance (summed over colours),
    the image with the heat map laid over it, and for each layer its ``channels`` of
    largest ``|sum over positions of R|``, each with that sum, signed. Channels with positions
    (``[B, h, w, C]``, about as wide to high as the image) are maps, all others bars,
    summed over whatever lies between examples and features (the tokens of ``[B, T, D]``).

    Blue is negative, white zero, red positive. The heat map of a row has its own scale,
    and so have the maps of one layer in a row, together: the 99.5 % quantile of
    the magnitudes; what lies beyond saturates.

    Args:
      path: of the PNG; an existing file is replaced.
      images: ``[B, H, W]``, ``[B, H, W, 1]`` or ``[B, H, W, 3]``: integers of 0 to 255,
        floats of 0 to 1, or normalised floats, which are stretched to their range.
      relevance: what :func:`jaxunlearn.lrp` returned for the images, or any array
        with as many elements an image (integrated gradients, say): then there are no layers.
      layers: keys of ``relevance.neurons``, or how many of them to draw, spread evenly
        over the network; the last, the logits, only where it is named.
      channels: how many maps a layer.
      names: what to write beside each row; by default the predicted class.
      title: of the picture.

    Raises:
      ValueError: shapes that do not fit, a layer that is not there, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    if channels < 1:
        raise ValueError(f"channels: expected a positive number, got {channels}")
    pictures = to_rgb(images)
    heat = _heat(relevance, pictures.shape[:3])
    columns = _layers(relevance, layers, channels, pictures.shape[:3])
    draw(path, pictures, heat, columns, _names(relevance, names, len(pictures)), title)


def _heat(relevance: Any, pixels: tuple[int, ...]) -> np.ndarray:
    """``[B, H, W]``: relevance of the pixels, summed over colours."""
    values = as_numbers("relevance", getattr(relevance, "input", relevance))
    if values.shape[:1] != pixels[:1] or values.size not in {
        int(np.prod(pixels)) * c for c in (1, 3)
    }:
        raise ValueError(
            f"relevance: expected a value for each of the pixels {list(pixels)} of images, or one "
            f"for each colour, got shape {list(values.shape)}"
        )
    heat: np.ndarray = values.reshape(*pixels, -1).sum(-1)
    return heat


def _layers(
    relevance: Any, layers: int | Sequence[str], channels: int, pixels: tuple[int, ...]
) -> list[Layer]:
    neurons: Mapping[str, Any] = getattr(relevance, "neurons", {})
    made = []
    for key in _keys(list(neurons), layers):
        values = as_numbers(f"relevance.neurons[{key!r}]", neurons[key])
        if values.ndim < 2 or values.shape[0] != pixels[0]:
            raise ValueError(
                f"relevance: expected {pixels[0]} examples as in images, got {key} {values.shape}"
            )
        features = values.shape[-1]
        spatial = _like_an_image(values.shape, pixels)
        about = f"top {min(BARS, features)} of {features} neurons"
        if spatial:
            size = "×".join(map(str, values.shape[1:3]))  # noqa: RUF001
            about = f"top {min(channels, features)} of {features} channels, {size}"
        name, within = short(key)
        maps = min(channels, features) if spatial else 0
        made.append(Layer(name, within, about, values, maps))
    return made


def _like_an_image(shape: tuple[int, ...], pixels: tuple[int, ...]) -> bool:
    """Whether ``[B, h, w, C]`` has positions; tokens by heads are no picture."""
    if len(shape) != 4 or shape[1] * shape[2] == 1:
        return False
    ratio = shape[1] * pixels[2] / (shape[2] * pixels[1])
    return 2 / 3 < ratio < 3 / 2


def _keys(known: list[str], layers: int | Sequence[str]) -> list[str]:
    if isinstance(layers, int):
        if layers < 0:
            raise ValueError(f"layers: expected a number >= 0 or keys, got {layers}")
        hidden = known[:-1]
        places = np.linspace(0, len(hidden) - 1, min(layers, len(hidden))).round().astype(int)
        return [hidden[place] for place in places]
    keys = [layers] if isinstance(layers, str) else list(layers)
    for key in keys:
        if key not in known:
            raise ValueError(f"layers: expected some of {', '.join(known)}, got {key!r}")
    return keys


def _names(relevance: Any, names: Sequence[str] | None, batch: int) -> list[str]:
    if names is not None:
        if len(names) != batch:
            raise ValueError(f"names: expected {batch}, one for each image, got {len(names)}")
        return list(names)
    logits = getattr(relevance, "logits", None)
    if logits is None:
        return [""] * batch
    predicted = as_numbers("relevance.logits", logits).argmax(-1)
    return [f"predicted\n{label}" for label in predicted]
