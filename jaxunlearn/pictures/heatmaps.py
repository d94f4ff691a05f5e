"""Maps laid over images: the relevance of pixels and channels, and the places of concepts."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.attribution import Relevance
from jaxunlearn.pictures import style

# inches
_CELL, _CHART, _NEAR, _APART, _ABOVE, _FOOT = 1.05, 1.5, 0.07, 0.32, 0.2, 0.62
_LEFT, _RIGHT, _TOP = 1.0, 0.2, 0.6
_MAP, _MAP_TOP, _MAP_LETTERS = 1.25, 0.3, 20

BARS = 8
"""Neurons of a layer without positions that are drawn."""


@style.picture
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
    the magnitudes; what lies beyond saturates. Above a map that shows nothing
    (``relevance.telling``) stands the reason.

    Args:
      path: of the PNG; an existing file is replaced.
      images: ``[B, H, W]``, ``[B, H, W, 1]`` or ``[B, H, W, 3]``: integers of 0 to 255,
        floats of 0 to 1, or normalised floats, which are stretched to their range.
      relevance: what :func:`jaxunlearn.lrp` returned for the images, in units of the output
        that it explains (logits), or any array with as many elements an image (integrated
        gradients, say): then there are no layers.
      layers: keys of ``relevance.neurons``, or how many of them to draw, spread evenly
        over the network; the last, the logits, only where it is named.
      channels: how many maps a layer.
      names: ``B``, to write beside each row; by default the predicted class.
      title: of the picture.

    Raises:
      ValueError: shapes that do not fit, a layer that is not there, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    if channels < 1:
        raise ValueError(f"channels: expected a positive number, got {channels}")
    pictures = style.to_rgb(images)
    heats = _heats(relevance, pictures.shape[:3])
    columns = _layers(relevance, layers, channels, pictures.shape[:3])
    beside, doubts = _names(relevance, names, len(pictures)), _doubts(relevance, len(pictures))
    widths = [_CELL] * 3 + [layer.width for layer in columns]
    gaps = [_NEAR, _NEAR, *[_APART] * len(columns)]
    starts = _LEFT + np.cumsum([0.0, *(w + g for w, g in zip(widths, gaps, strict=False))])
    top = _TOP + (style.TITLE if title else 0.0)
    width = float(starts[len(widths) - 1]) + widths[-1] + _RIGHT
    height = top + len(pictures) * (_CELL + _ABOVE) + _FOOT
    with style.page(path, width, height, title, _LEFT) as page:
        heads = [("image", "", ""), ("relevance", "", ""), ("overlay", "", "")]
        heads += [(layer.name, layer.within, layer.about) for layer in columns]
        for start, wide, (head, within, about) in zip(starts, widths, heads, strict=False):
            middle = {"left": start + wide / 2, "ha": "center"}
            small = {"fontsize": 6.5, "color": style.MUTED, **middle}
            page.text(top=top - 0.43, words=within, **small)
            page.text(top=top - 0.27, words=head, fontsize=9, fontweight="bold", **middle)
            page.text(top=top - 0.1, words=about, **small)
        for row, picture in enumerate(pictures):
            upper = top + row * (_CELL + _ABOVE) + _ABOVE
            side = {"ha": "right", "va": "center", "fontsize": 8}
            page.text(_LEFT - 0.12, upper + _CELL / 2, beside[row], **side)
            heat, scale = heats[row], style.scale_of(heats[row])
            about = doubts[row] or f"sum {style.signed(heat.sum(), 3)}, scale ±{scale:.2g}"
            page.image(starts[0], upper, _CELL, picture)
            _map(page, starts[1], upper, heat, scale, about)
            page.image(starts[2], upper, _CELL, style.overlay(picture, heat, scale))
            for layer, start in zip(columns, starts[3:], strict=False):
                (_maps if layer.maps else _bars)(page, start, upper, layer, row)
        key = page.axes(_LEFT, page.height - 0.36, 3 * _CELL + 2 * _NEAR, 0.08)
        style.legend(key, "negative", "positive")


class _Layer(NamedTuple):
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
        """Returns inches."""
        return self.maps * (_CELL + _NEAR) - _NEAR if self.maps else _CHART


def _heats(relevance: Any, pixels: tuple[int, ...]) -> np.ndarray:
    """Returns ``[B, H, W]``, the relevance of the pixels, summed over colours."""
    values = style.as_numbers("relevance", getattr(relevance, "input", relevance))
    if values.shape[:1] != pixels[:1] or values.size not in {
        int(np.prod(pixels)) * c for c in (1, 3)
    }:
        raise ValueError(
            f"relevance: expected a value for each of the pixels {list(pixels)} of images, or one "
            f"for each colour, got shape {list(values.shape)}"
        )
    size = pixels[1:]
    if values.ndim == 4 and values.shape[2:] == size and values.shape[1:3] != size:
        values = np.moveaxis(values, 1, -1)  # colours first, as a network may read them
    heat: np.ndarray = values.reshape(*pixels, -1).sum(-1)
    return heat


def _layers(
    relevance: Any, layers: int | Sequence[str], channels: int, pixels: tuple[int, ...]
) -> list[_Layer]:
    neurons: Mapping[str, Any] = getattr(relevance, "neurons", {})
    made = []
    for key in _keys(list(neurons), layers):
        values = style.as_numbers(f"relevance.neurons[{key!r}]", neurons[key])
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
        maps = min(channels, features) if spatial else 0
        made.append(_Layer(*style.short(key), about, values, maps))
    return made


def _like_an_image(shape: tuple[int, ...], pixels: tuple[int, ...]) -> bool:
    """Returns true if ``[B, h, w, C]`` has positions; tokens by heads are no picture."""
    if len(shape) != 4 or shape[1] * shape[2] == 1:
        return False
    ratio = shape[1] * pixels[2] / (shape[2] * pixels[1])
    return 2 / 3 < ratio < 3 / 2


def _keys(known: list[str], layers: int | Sequence[str]) -> list[str]:
    if isinstance(layers, int):
        if layers < 0:
            raise ValueError(f"layers: expected a number >= 0 or keys, got {layers}")
        return style.spread(known[:-1], layers)
    keys = [layers] if isinstance(layers, str) else list(layers)
    style.known("layers", keys, known)
    return keys


def _names(relevance: Any, names: Sequence[str] | None, batch: int) -> list[str]:
    if names is not None:
        if len(names) != batch:
            raise ValueError(f"names: expected {batch}, one for each image, got {len(names)}")
        return list(names)
    logits = getattr(relevance, "logits", None)
    if logits is None:
        return [""] * batch
    predicted = style.as_numbers("relevance.logits", logits).argmax(-1)
    return [f"predicted\n{label}" for label in predicted]


@jax.jit
def _judged(relevance: Relevance) -> tuple[jax.Array, jax.Array, jax.Array]:
    return relevance.telling, relevance.arrived, relevance.spread


def _doubts(relevance: Any, batch: int) -> list[str]:
    """Returns the reason why the map of each example shows nothing, or no words."""
    if not isinstance(relevance, Relevance):
        return [""] * batch
    columns = _judged(relevance)
    return [
        "" if telling
        else f"shows nothing: {100 * arrived:.2g} % arrived" if arrived < 0.01
        else f"shows nothing: sum |R| {spread:.2g}"
        for telling, arrived, spread in zip(*map(np.asarray, columns), strict=True)
    ]  # fmt: skip


def top_channels(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``int [count]``, ``[count]``: features of largest ``|sum of R|``, and their sums.

    Args:
      values: ``[..., features]``, of one example.
      count: how many; all if there are fewer.
    """
    sums = values.sum(axis=tuple(range(values.ndim - 1)))
    order = np.argsort(-np.abs(sums), kind="stable")[:count]
    return order, sums[order]


def _maps(page: style.Page, start: float, top: float, layer: _Layer, row: int) -> None:
    values = layer.values[row]
    chosen, sums = top_channels(values, layer.maps)
    scale = style.scale_of(values[..., chosen])
    for place, (channel, total) in enumerate(zip(chosen, sums, strict=True)):
        left, words = start + place * (_CELL + _NEAR), f"{channel}:  {style.signed(total)}"
        _map(page, left, top, values[..., channel], scale, words)


def _map(
    page: style.Page, left: float, top: float, heat: np.ndarray, scale: float, words: str
) -> None:
    page.image(left, top, _CELL, style.diverging()((heat / scale + 1) / 2)[..., :3])
    about = {"fontsize": 6.2, "ha": "center", "color": style.MUTED}
    page.text(left + _CELL / 2, top - 0.04, words, **about)


def _bars(page: style.Page, start: float, top: float, layer: _Layer, row: int) -> None:
    """Draws the neurons of an example that have relevance at all."""
    chosen, sums = top_channels(layer.values[row], BARS)
    chosen, sums = chosen[sums != 0], sums[sums != 0]
    share = sums / np.abs(sums).max(initial=1e-300)
    axes = page.axes(start, top, _CHART, _CELL)
    colours = style.diverging()(0.5 + 0.36 * np.sign(share))
    axes.barh(range(len(chosen)), share, height=0.72, color=colours)
    words: dict[str, Any] = {"va": "center", "fontsize": 6, "parse_math": False}
    for place, (channel, value, end) in enumerate(zip(chosen, sums, share, strict=True)):
        # the number of a neuron stands on the side where no bar is
        step, away, side = (0.05, "left", "right") if end > 0 else (-0.05, "right", "left")
        axes.text(-step, place, str(channel), ha=side, color=style.INK, **words)
        axes.text(end + step, place, style.signed(value), ha=away, color=style.MUTED, **words)
    axes.axvline(0, color="0.6", linewidth=0.6)
    # one zero line for all rows of a layer
    negative = any((top_channels(values, BARS)[1] < 0).any() for values in layer.values)
    axes.set(xlim=(-1.55 if negative else -0.4, 1.55), ylim=(BARS - 0.5, -0.5))
    axes.set_axis_off()


@style.picture
def save_maps(
    path: str | os.PathLike[str],
    images: jax.typing.ArrayLike,
    maps: jax.typing.ArrayLike,
    names: Sequence[str],
    *,
    title: str | None = None,
) -> None:
    """Draws images and, beside each, the maps of concepts laid over it, as PNG.

    Blue is negative, red positive; the image shows where a concept is not. All maps of a row have
    one scale, the 99.5 % quantile of the magnitudes; what lies beyond saturates. Above a
    map is its strongest cell.

    Args:
      path: of the PNG; an existing file is replaced.
      images: ``[B, H, W]``, ``[B, H, W, 1]`` or ``[B, H, W, 3]``, values as for
        :func:`jaxunlearn.pictures.save_heatmaps`.
      maps: ``[B, c, h, w]``, in any unit; enlarged to the pixels by bilinear interpolation.
      names: ``c`` concepts.
      title: of the picture.

    Raises:
      ValueError: shapes that do not fit, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    pictures = style.to_rgb(images)
    values = style.shaped("maps", maps, [len(pictures), len(names), "h", "w"], "images and names")
    if not values.size:
        raise ValueError(f"maps: expected at least one cell, got {list(values.shape)}")
    heats = enlarged(values, pictures.shape[1:3])
    starts = style.PAD + (_MAP + _NEAR) * np.arange(1 + len(names))
    top = _MAP_TOP + (style.TITLE if title else 0.0)
    width = float(starts[-1]) + _MAP + style.PAD
    height = top + len(pictures) * (_MAP + _ABOVE) + _FOOT
    with style.page(path, width, height, title) as page:
        for start, name in zip(starts, ["image", *names], strict=True):
            words = {"fontsize": 8.5, "fontweight": "bold", "ha": "center"}
            page.text(start + _MAP / 2, top - 0.05, style.cut(name, _MAP_LETTERS), **words)
        for row, picture in enumerate(pictures):
            upper, scale = top + row * (_MAP + _ABOVE) + _ABOVE, style.scale_of(heats[row])
            shown = [picture, *(style.overlay(picture, heat, scale) for heat in heats[row])]
            peaks = (cells.flat[np.abs(cells).argmax()] for cells in values[row])
            above = [f"scale ±{scale:.2g}", *(f"peak {style.signed(peak)}" for peak in peaks)]
            for start, image, about in zip(starts, shown, above, strict=True):
                page.image(start, upper, _MAP, image)
                words = {"fontsize": 6.5, "ha": "center", "color": style.MUTED}
                page.text(start + _MAP / 2, upper - 0.04, about, **words)
        key = page.axes(style.PAD, page.height - 0.36, 1.9, 0.08)
        style.legend(key, "negative", "positive")


def enlarged(maps: np.ndarray, pixels: tuple[int, ...]) -> np.ndarray:
    """Returns ``[..., H, W]`` of ``[..., h, w]``: bilinear, a value at the middle of its cell."""
    for axis, count in zip((-2, -1), pixels, strict=True):
        size = maps.shape[axis]
        # nothing to interpolate with beyond the middle of the first and the last cell
        places = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape(-1, *[1] * (-1 - axis))
        first, second = (maps.take(k, axis) for k in (low, np.minimum(low + 1, size - 1)))
        maps = (1 - share) * first + share * second
    return maps
