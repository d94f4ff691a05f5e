"""Labelled images by name, as NumPy arrays: embedded, from TFDS, or from an ``.npz``.

Nothing here imports JAX; scikit-learn, Pillow and TFDS are imported only by what
needs them.
"""

import os
from pathlib import Path

from jaxunlearn.config import DataConfig
from jaxunlearn.core.errors import DataError
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.sources.digits import load_digits
from jaxunlearn.data.sources.names import SOURCES
from jaxunlearn.data.sources.npz import load_npz
from jaxunlearn.data.sources.tfds import load_tfds

__all__ = ["SOURCES", "load_dataset"]


def load_dataset(config: DataConfig) -> Dataset:
    """Loads the data set that ``config.name`` names, from disk wherever possible.

    ``digits`` comes with scikit-learn; it has no official split, so 800 of its
    1,797 images, the same ones every time and in proportion to the classes, are
    the test split. A name ending in ``.npz`` is a path to a file with the keys
    ``train_x``, ``train_y``, ``test_x``, ``test_y`` and perhaps ``class_names``.
    Every other name is a TFDS image set; its decoded arrays are kept in the cache
    folder (``config.cache``, else ``$JAXUNLEARN_CACHE``, else ``jaxunlearn`` in
    the user's cache directory).

    Args:
      config: the fields ``name``, ``dir``, ``image_size`` and ``cache`` are read.

    Returns:
      The data set; the arrays are the caller's own.

    Raises:
      DataError: the data are unknown, missing, incomplete, damaged or not
        labelled images; the message names the file or folder.
    """
    if config.image_size is not None and config.image_size < 1:
        raise DataError(f"data.image_size: expected a positive number, got {config.image_size}")
    if config.name == "digits":
        return load_digits(config.image_size)
    if config.name.endswith(".npz"):
        return load_npz(Path(os.path.expanduser(config.name)), config.image_size)
    return load_tfds(config)
