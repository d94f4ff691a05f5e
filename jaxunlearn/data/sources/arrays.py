"""Data sets that are arrays already: the embedded digits, and ``.npz`` files of one's own."""

import gzip
import importlib.util
import os
from pathlib import Path

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.core.errors import DataError
from jaxunlearn.core.files import read_npz
from jaxunlearn.data.dataset import (
    ARRAYS,
    Dataset,
    check_differ,
    check_labels,
    make_dataset,
    resize_all,
)

_TEST = 800
_NAMES = "class_names"


def load_digits(config: DataConfig) -> Dataset:
    """Returns the 1,797 images of scikit-learn, 997 of them for training."""
    images, y = _digits()
    x = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # RandomState, because its stream is frozen; a Generator's may change with NumPy
    shuffled = np.random.RandomState(0).permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    # every (N / 800)-th of the images sorted by class: in proportion, and 800 exactly
    steps = np.arange(len(y) + 1) * _TEST // len(y)
    test = np.zeros(len(y), bool)
    test[by_class[np.diff(steps) == 1]] = True
    arrays = {
        "train_x": resize_all(x[~test], config.image_size),
        "train_y": y[~test].astype(np.int32),
        "test_x": resize_all(x[test], config.image_size),
        "test_y": y[test].astype(np.int32),
    }
    return make_dataset(arrays, [str(digit) for digit in range(10)])


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Reads the file that comes with scikit-learn, whose import takes longer than the rest."""
    found = importlib.util.find_spec("sklearn")
    home = Path(found.origin).parent if found and found.origin else Path()
    file = home / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():  # it lies elsewhere, as other versions may have it
        import sklearn.datasets

        return sklearn.datasets.load_digits(return_X_y=True)
    with gzip.open(file, "rt") as opened:
        rows = np.loadtxt(opened, delimiter=",")
    return rows[:, :-1], rows[:, -1].astype(int)


def load_npz(config: DataConfig) -> Dataset:
    """Returns the arrays of the file that ``config.name`` is a path to."""
    path = Path(os.path.expanduser(config.name))
    found = read_npz(path, ARRAYS, [_NAMES], strings=[_NAMES], name="data.name")
    arrays = {}
    for split in ("train", "test"):
        x = _examples(f"{path}: {split}_x", found[f"{split}_x"], config.image_size)
        y = _labels(f"{path}: {split}_y", found[f"{split}_y"], len(x))
        arrays[f"{split}_x"], arrays[f"{split}_y"] = x, y
    train, test = arrays["train_x"], arrays["test_x"]
    check_differ(f"{path}: train_x", [train])
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise DataError(
            f"{path}: expected test_x like train_x, {train.dtype} [N, {_dims(train)}], "
            f"got {test.dtype} [N, {_dims(test)}]"
        )
    if _NAMES in found:
        names = [str(name) for name in found[_NAMES]]
    else:
        names = _numbered(f"{path}: train_y", arrays["train_y"])
    if not names:
        raise DataError(f"{path}: {_NAMES}: expected strings [K], got none")
    for key in ("train_y", "test_y"):
        check_labels(f"{path}: {key}", arrays[key], len(names))
    return make_dataset(arrays, names)


def _examples(where: str, x: np.ndarray, size: int | None) -> np.ndarray:
    """Returns them as ``uint8`` or ``float32``, ``[N, H, W, C]`` or ``[N, D]``."""
    if x.ndim not in (2, 3, 4) or x.size == 0:
        raise DataError(
            f"{where}: expected shape [N, D], [N, H, W] or [N, H, W, C], got {list(x.shape)}"
        )
    if size is not None and x.ndim == 2:
        raise DataError(
            f"data.image_size: expected None for vectors, got {size}; "
            f"{where} has the shape {list(x.shape)}"
        )
    x = _numbers(where, x)
    return resize_all(x[..., None] if x.ndim == 3 else x, size)


def _numbers(where: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "ui":
        if x.min() < 0 or x.max() > 255:
            raise DataError(
                f"{where}: expected integers from 0 to 255 (or floats), got {x.min()} to {x.max()}"
            )
        return x.astype(np.uint8)
    if x.dtype.kind != "f":
        raise DataError(f"{where}: expected dtype uint8 or a float, got {x.dtype}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if wrong.size:
        raise DataError(
            f"{where}: expected finite numbers, got NaN, infinity or more than float32 "
            f"holds in {wrong.size} examples, the first at position {wrong[0]}"
        )
    return x


def _labels(where: str, y: np.ndarray, count: int) -> np.ndarray:
    if y.dtype.kind not in "ui":
        raise DataError(f"{where}: expected integer labels, got {y.dtype}")
    if y.shape != (count,):
        raise DataError(
            f"{where}: expected shape [{count}], one label for each example, got {list(y.shape)}"
        )
    # before the conversion, lest a label wrap around into the valid range
    check_labels(where, y, np.iinfo(np.int32).max)
    return y.astype(np.int32)


def _numbered(where: str, y: np.ndarray) -> list[str]:
    """Returns class names "0", "1", ... up to the largest label; each must occur."""
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


def _dims(x: np.ndarray) -> str:
    return ", ".join(map(str, x.shape[1:]))
