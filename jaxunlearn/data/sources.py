"""Labelled images by name, as NumPy arrays: embedded, from TFDS, or from an ``.npz``.

Nothing here imports JAX; scikit-learn, Pillow and TFDS are imported only by what
needs them.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.errors import DataError

__all__ = ["SOURCES", "Dataset", "load_dataset"]

SOURCES: dict[str, str] = {
    "digits": "handwritten digits 8x8 grey, 10 classes, 997 + 800; embedded (scikit-learn)",
    "mnist": "handwritten digits 28x28 grey, 10 classes, 60,000 + 10,000; TFDS",
    "fashion_mnist": "articles of clothing 28x28 grey, 10 classes, 60,000 + 10,000; TFDS",
    "cifar10": "animals and vehicles 32x32 colour, 10 classes, 50,000 + 10,000; TFDS",
}
"""The built-in names and what they are, one line each. Any other TFDS image set
goes by its TFDS name, any other folder in TFDS layout by its name below
``data.dir``, and arrays of one's own by a path ending in ``.npz``."""

ARRAYS = ("train_x", "train_y", "test_x", "test_y")

_DIGITS_TEST = 800
_BLOCK = 2**22


class Dataset(NamedTuple):
    """A training and a test split of labelled examples.

    Attributes:
      train_x: ``uint8 [N, H, W, C]``; from an ``.npz`` also ``float32``, and
        vectors ``[N, D]``.
      train_y: ``int32 [N]``, class labels ``0 .. K - 1``.
      test_x: like ``train_x``, of the same dtype and example shape.
      test_y: like ``train_y``.
      class_names: one for each of the ``K`` classes.
      mean: ``float32 [1, 1, C]`` or ``[D]``, the mean of ``train_x`` over all
        axes but the last, in the units of ``train_x``.
      std: the standard deviation likewise; 1 where ``train_x`` is constant.
      fingerprint: SHA-256 of the arrays and class names: equal contents have
        equal fingerprints, wherever they were read from.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    fingerprint: str


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
        return _load_digits(config.image_size)
    if config.name.endswith(".npz"):
        return _load_npz(Path(os.path.expanduser(config.name)), config.image_size)
    # imported here, because that module builds on this one
    from jaxunlearn.data.tfds_source import load_tfds

    return load_tfds(config)


def make_dataset(arrays: dict[str, np.ndarray], class_names: Sequence[str]) -> Dataset:
    """Adds statistics and the fingerprint to the four ``ARRAYS``."""
    mean, std = _statistics(arrays["train_x"])
    names = tuple(class_names)
    return Dataset(
        **arrays, class_names=names, mean=mean, std=std, fingerprint=fingerprint(arrays, names)
    )


def fingerprint(arrays: dict[str, np.ndarray], class_names: Sequence[str]) -> str:
    """SHA-256 over dtype, shape and bytes of the four ``ARRAYS``, and the class names."""
    digest = hashlib.sha256()
    for key in ARRAYS:
        array = np.ascontiguousarray(arrays[key])
        digest.update(json.dumps([key, array.dtype.str, array.shape]).encode())
        digest.update(array.data)
    digest.update(json.dumps(list(class_names)).encode())
    return digest.hexdigest()


def resize(image: np.ndarray, size: int | None) -> np.ndarray:
    """Resizes one image ``[H, W, C]`` to ``[size, size, C]``; ``None`` keeps it.

    Bilinear, averaging over the pixels that an output pixel covers.
    """
    if size is None or image.shape[:2] == (size, size):
        return image
    from PIL import Image

    # Pillow knows single channels of uint8 and float32, but of colours only uint8 RGB
    whole = image.dtype == np.uint8 and image.shape[-1] == 3
    planes = [image] if whole else [image[..., c] for c in range(image.shape[-1])]
    shape, how = (size, size), Image.Resampling.BILINEAR
    return np.dstack([np.asarray(Image.fromarray(p).resize(shape, how)) for p in planes])


def check_labels(where: str, y: np.ndarray, classes: int) -> None:
    """Raises a DataError unless all labels lie in ``0 .. classes - 1``."""
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if wrong.size:
        at = int(wrong[0])
        raise DataError(
            f"{where}: expected labels from 0 to {classes - 1}, "
            f"got {y[at]} at position {at} ({wrong.size} such labels)"
        )


def _load_digits(size: int | None) -> Dataset:
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    x = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # RandomState, because its stream is frozen; a Generator's may change with NumPy
    shuffled = np.random.RandomState(0).permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    # every (N / 800)-th of the images sorted by class: in proportion, and 800 exactly
    steps = np.arange(len(y) + 1) * _DIGITS_TEST // len(y)
    test = np.zeros(len(y), bool)
    test[by_class[np.diff(steps) == 1]] = True
    arrays = {
        "train_x": _resize_all(x[~test], size),
        "train_y": y[~test].astype(np.int32),
        "test_x": _resize_all(x[test], size),
        "test_y": y[test].astype(np.int32),
    }
    return make_dataset(arrays, [str(digit) for digit in range(10)])


def _load_npz(path: Path, size: int | None) -> Dataset:
    found, names = _read_npz(path)
    arrays = {}
    for split in ("train", "test"):
        x = _check_examples(f"{path}: {split}_x", found[f"{split}_x"])
        if size is not None and x.ndim == 2:
            raise DataError(
                f"data.image_size: expected None for vectors, got {size}; "
                f"{path} holds {split}_x of shape {x.shape}"
            )
        arrays[f"{split}_x"] = _resize_all(x, size)
        arrays[f"{split}_y"] = _check_npz_labels(
            f"{path}: {split}_y", found[f"{split}_y"], f"{split}_x", len(x)
        )
    train, test = arrays["train_x"], arrays["test_x"]
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise DataError(
            f"{path}: expected test_x like train_x, {train.dtype} [N, {_dims(train)}], "
            f"got {test.dtype} [N, {_dims(test)}]"
        )
    names = names or _numbered(f"{path}: train_y", arrays["train_y"])
    for key in ("train_y", "test_y"):
        check_labels(f"{path}: {key}", arrays[key], len(names))
    return make_dataset(arrays, names)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The four arrays as they are in the file, and the class names or ``[]``."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"data.name: expected an .npz file, got {what} at {path}")
    with _open_npz(path) as archive:
        missing = [key for key in ARRAYS if key not in archive]
        if missing:
            raise DataError(
                f"{path}: expected the keys {', '.join(ARRAYS)}, "
                f"got {', '.join(archive.files) or 'none'}"
            )
        found = {key: _read_key(path, archive, key) for key in ARRAYS}
        if "class_names" not in archive:
            return found, []
        names = _read_key(path, archive, "class_names")
    if names.ndim != 1 or names.dtype.kind not in "US" or names.size == 0:
        raise DataError(
            f"{path}: class_names: expected strings of shape [K], "
            f"got {names.dtype} of shape {names.shape}"
        )
    return found, [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names]


def _open_npz(path: Path) -> Any:
    wanted = f"{path}: expected an .npz archive, got a file of another kind or a damaged one"
    if not zipfile.is_zipfile(path):
        raise DataError(wanted)
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{wanted}: {error}") from error


def _read_key(path: Path, archive: Any, key: str) -> np.ndarray:
    try:
        return np.asarray(archive[key])
    # a damaged or pickled member raises one of many types, depending on the damage
    except Exception as error:
        raise DataError(
            f"{path}: {key}: expected an array of numbers (or of strings, for class_names), "
            f"got one that cannot be read: {error}"
        ) from error


def _check_examples(where: str, x: np.ndarray) -> np.ndarray:
    """As ``uint8`` or ``float32``, ``[N, H, W, C]`` or ``[N, D]``."""
    if x.ndim not in (2, 3, 4) or x.size == 0:
        raise DataError(
            f"{where}: expected shape [N, D], [N, H, W] or [N, H, W, C], got {list(x.shape)}"
        )
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        wrong = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        if wrong.size:
            raise DataError(
                f"{where}: expected finite numbers, got NaN, infinity or more than float32 "
                f"holds in {wrong.size} examples, the first at position {wrong[0]}"
            )
    elif x.dtype.kind in "ui":
        if x.min() < 0 or x.max() > 255:
            raise DataError(
                f"{where}: expected integers from 0 to 255 (or floats), got {x.min()} to {x.max()}"
            )
        x = x.astype(np.uint8)
    else:
        raise DataError(f"{where}: expected dtype uint8 or a float, got {x.dtype}")
    return x[..., None] if x.ndim == 3 else x


def _check_npz_labels(where: str, y: np.ndarray, partner: str, count: int) -> np.ndarray:
    if y.dtype.kind not in "ui":
        raise DataError(f"{where}: expected integer labels, got {y.dtype}")
    if y.shape != (count,):
        raise DataError(
            f"{where}: expected shape [{count}], one label for each of {partner}, "
            f"got {list(y.shape)}"
        )
    # before the conversion, lest a label wrap around into the valid range
    check_labels(where, y, np.iinfo(np.int32).max)
    return y.astype(np.int32)


def _numbered(where: str, y: np.ndarray) -> list[str]:
    """Class names "0", "1", ... up to the largest label; each must occur."""
    count = int(y.max()) + 1
    present = np.unique(y)
    # compared by number, because a stray label of a billion must not allocate as many names
    if len(present) != count:
        absent = next(k for k in range(count) if k >= len(present) or present[k] != k)
        raise DataError(
            f"{where}: expected every label from 0 to the largest, {count - 1}, "
            f"got none of {absent} (give class_names if that class has no examples)"
        )
    return [str(k) for k in range(count)]


def _resize_all(x: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or x.shape[1:3] == (size, size):
        return x
    return np.stack([resize(image, size) for image in x])


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all axes but the last, of one example's rank."""
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    mean = sum(block.sum(axis=axes) for block in _blocks(x)) / count
    square = sum(np.square(block - mean).sum(axis=axes) for block in _blocks(x)) / count
    std = np.sqrt(square).astype(np.float32)
    # a constant channel, whose deviation is nothing but rounding, is divided by 1
    constant = (std <= 1e-7 * np.abs(mean)) | (std < np.finfo(np.float32).tiny)
    std = np.where(constant, np.float32(1), std)
    shape = (1,) * (x.ndim - 2) + (-1,)
    return np.asarray(mean, np.float32).reshape(shape), std.reshape(shape)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """``x`` in float64, a few examples at a time, to bound the memory."""
    step = max(1, _BLOCK // x[0].size)
    return (x[i : i + step].astype(np.float64) for i in range(0, len(x), step))


def _dims(x: np.ndarray) -> str:
    return ", ".join(map(str, x.shape[1:]))
