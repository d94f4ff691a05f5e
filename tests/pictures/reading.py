"""Pictures read back: their pixels, and what lies where in inches."""

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from jaxunlearn.pictures import style

DPI = style.INCH


def pixels(file):
    """``int16 [H, W, 3]``."""
    picture = Image.open(file)
    picture.verify()  # the whole file
    return np.asarray(Image.open(file).convert("RGB")).astype(np.int16)


def codes(picture):
    """``int32 [H, W]``: one number for each colour."""
    return np.asarray(picture, np.int32) @ np.array([65536, 256, 1], np.int32)


def at(picture, left, top):
    """The colour at a place in inches."""
    return picture[round(DPI * top), round(DPI * left)]


def near(picture, colour, within=6):
    """``bool [H, W]``: which pixels have a colour."""
    channels = zip(np.moveaxis(picture, -1, 0), to_rgb(colour), strict=True)
    return np.logical_and.reduce([np.abs(part - 255 * c) <= within for part, c in channels])


def extent(mask):
    """Left, top, right, bottom of what is set, in inches."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / DPI


def greys(count, size=8):
    """Images of one grey each, none of them like another."""
    return np.broadcast_to(
        np.linspace(0.1, 0.9, count)[:, None, None, None], (count, size, size, 3)
    ).copy()


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


class Recorder:
    """Keeps what is written on pages."""

    def __init__(self, monkeypatch):
        self.words, write = [], style.Page.text

        def text(page, left, top, words, **style):
            self.words.append(words)
            write(page, left, top, words, **style)

        monkeypatch.setattr(style.Page, "text", text)
