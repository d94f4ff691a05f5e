"""Heat maps: what in an image, and which channels of a network, an output is due to."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn.attribution import Relevance
from jaxunlearn.pictures.grid import BARS, Layer, draw
from jaxunlearn.pictures.images import to_rgb
from jaxunlearn.pictures.style import as_numbers, short

__all__ = ["save_heatmaps"]


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
