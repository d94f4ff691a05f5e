"""Images and heat maps as arrays of colours."""

import jax
import numpy as np

from jaxunlearn.pictures.style import as_numbers, diverging

__all__ = ["overlay", "scale_of", "to_rgb"]

_SHARE = 0.995


def scale_of(values: np.ndarray) -> float:
    """What is drawn in full colour: the 99.5 % quantile of the magnitudes.

    The few values beyond, which would leave all else white, saturate. The largest
    magnitude if the quantile is zero, and 1 if all values are.
    """
    magnitudes = np.abs(values)
    if not magnitudes.size:
        return 1.0
    return float(np.quantile(magnitudes, _SHARE)) or float(magnitudes.max()) or 1.0


def to_rgb(images: jax.typing.ArrayLike) -> np.ndarray:
    """``float64 [B, H, W, 3]`` of 0 to 1.

    Raises:
      ValueError: not ``[B, H, W]`` or ``[B, H, W, 1 or 3]``, no image, NaN.
    """
    integers = np.issubdtype(np.asarray(images).dtype, np.integer)
    values = as_numbers("images", images)
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[-1] not in (1, 3) or not values.size:
        raise ValueError(
            f"images: expected [B, H, W], [B, H, W, 1] or [B, H, W, 3], got {np.shape(images)}"
        )
    low, high = values.min(), values.max()
    if integers and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    values = (values - low) / ((high - low) or 1.0)
    return np.broadcast_to(values, (*values.shape[:3], 3))


def overlay(picture: np.ndarray, heat: np.ndarray, scale: float) -> np.ndarray:
    """``[H, W, 3]``: the image in pale grey, under the colours of its heat map.

    The more relevant a pixel is, the less of the image shows:
    ``(1 - a) grey + a colour`` with ``a = min(|R| / scale, 1)^.7``.

    Args:
      picture: ``[H, W, 3]`` of 0 to 1.
      heat: ``[H, W]``.
      scale: what is drawn in full colour.
    """
    share = np.clip(heat / scale, -1, 1)
    colour = diverging()((share + 1) / 2)[..., :3]
    grey = 1 - 0.32 * (1 - picture.mean(-1, keepdims=True))
    opacity = np.abs(share)[..., None] ** 0.7
    mixed: np.ndarray = (1 - opacity) * grey + opacity * colour
    return mixed
