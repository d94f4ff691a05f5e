"""Arrays of one's own, from an ``.npz`` file: read, checked, brought to one form."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core.errors import DataError
from jaxunlearn.data.dataset import ARRAYS, Dataset, check_labels, make_dataset, resize_all


def load_npz(path: Path, size: int | None) -> Dataset:
    """The data set in the file ``path``, images resized to ``size`` pixels a side."""
    found, names = _read_npz(path)
    arrays = {}
    for split in ("train", "test"):
        x = _examples(f"{path}: {split}_x", found[f"{split}_x"], size)
        y = _labels(f"{path}: {split}_y", found[f"{split}_y"], len(x))
        arrays[f"{split}_x"], arrays[f"{split}_y"] = x, y
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


def _examples(where: str, x: np.ndarray, size: int | None) -> np.ndarray:
    """As ``uint8`` or ``float32``, ``[N, H, W, C]`` or ``[N, D]``."""
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


def _dims(x: np.ndarray) -> str:
    return ", ".join(map(str, x.shape[1:]))
