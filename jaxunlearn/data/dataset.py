"""Data sets as every source gives them, with statistics and a fingerprint, and their cache.

Nothing here imports JAX for data sets of arrays; Pillow is imported only to resize.

Decoded data sets are kept on disk, one folder of ``.npy`` files each. An entry is checked
against its fingerprint when it is read, so that a damaged one counts as absent; a cache that
cannot be written costs time, nothing else.
"""

import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.core.errors import DataError
from jaxunlearn.core.files import most_bytes

ARRAYS = ("train_x", "train_y", "test_x", "test_y")

# numbers in a block of the statistics, 32 MiB in float64
_BLOCK = 2**22


class Dataset(NamedTuple):
    """A training and a test split of labelled examples.

    Attributes:
      train_x: ``uint8 [N, H, W, C]``; from an ``.npz`` also ``float32``, and
        vectors ``[N, D]``; from a source of one's own any pytree of arrays ``[N, ...]``.
      train_y: ``int32 [N]``, class labels ``0 .. K - 1``; see ``labels``.
      test_x: like ``train_x``, of the same dtype and example shape.
      test_y: like ``train_y``.
      class_names: one for each of the ``K`` classes.
      mean: ``float32 [1, 1, C]``, ``[C, 1, 1]`` or ``[D]``, the mean of ``train_x`` over all
        axes but that of the channels, the last one or in images ``[C, H, W]`` the first, in the
        units of ``train_x``; ``None`` beside a reader, and of trees.
      std: the standard deviation likewise; 1 where ``train_x`` is constant.
      fingerprint: SHA-256 of the arrays and class names: equal contents have
        equal fingerprints, wherever they were read from.
      reader, labels: see :func:`jaxunlearn.data.examples.as_examples`.
      facts: what a kind of models found when it read the data, by name, beside arrays: of texts
        the ``"tokenizer"``. Networks are built by it, methods and judgement are given it.
    """

    train_x: Any
    train_y: np.ndarray
    test_x: Any
    test_y: np.ndarray
    class_names: tuple[str, ...]
    mean: Any
    std: Any
    fingerprint: str
    reader: Callable[[Any], Any] | None = None
    labels: str = "class"
    facts: Mapping[str, Any] = MappingProxyType({})


def make_dataset(
    arrays: Mapping[str, Any],
    class_names: Sequence[str] = (),
    *,
    reader: Callable[[Any], Any] | None = None,
    labels: str = "class",
) -> Dataset:
    """Makes a data set of the four ``ARRAYS``: adds statistics and the fingerprint.

    Args:
      arrays: by name, as in :class:`Dataset`.
      class_names: of the labels; none where these are no classes.
      reader, labels: see :func:`jaxunlearn.data.examples.as_examples`.

    Raises:
      DataError: the training examples are all alike.
    """
    x, names = arrays["train_x"], tuple(class_names)
    check_differ("train_x", list(_named_leaves("train_x", x).values()))
    plain = reader is None and isinstance(x, np.ndarray)
    mean, std = _statistics(x) if plain else (None, None)
    return Dataset(
        **arrays, class_names=names, mean=mean, std=std, fingerprint=fingerprint(arrays, names),
        reader=reader, labels=labels,
    )  # fmt: skip


def fingerprint(arrays: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """Computes the SHA-256 of dtype, shape and bytes of the four ``ARRAYS``, and the names."""
    digest = hashlib.sha256()
    for key in ARRAYS:
        for name, leaf in _named_leaves(key, arrays[key]).items():
            array = np.ascontiguousarray(leaf)
            digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
            digest.update(array.data)
    digest.update(json.dumps(list(class_names)).encode())
    return digest.hexdigest()


def _named_leaves(key: str, x: Any) -> Mapping[str, np.ndarray]:
    if isinstance(x, np.ndarray):
        return {key: x}
    # JAX knows trees; arrays do without it
    from jaxunlearn.core.trees import named_leaves

    return {f"{key}/{name}": np.asarray(leaf) for name, leaf in named_leaves(x).items()}


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


def resize_all(x: np.ndarray, size: int | None) -> np.ndarray:
    """Resizes images ``[N, H, W, C]``; vectors pass, since ``size`` is ``None`` for them."""
    if size is None or x.shape[1:3] == (size, size):
        return x
    found = len(x) * size**2 * x.shape[-1] * x.dtype.itemsize
    if found > most_bytes():
        raise DataError(
            f"data.image_size: expected images of at most {most_bytes():,} bytes together, the "
            f"memory of this machine, got {found:,}"
        )
    return np.stack([resize(image, size) for image in x])


def check_labels(where: str, y: np.ndarray, classes: int) -> None:
    """Raises a :class:`DataError` unless all labels lie in ``0 .. classes - 1``."""
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if wrong.size:
        at = int(wrong[0])
        raise DataError(
            f"{where}: expected labels from 0 to {classes - 1}, "
            f"got {y[at]} at position {at} ({wrong.size} such labels)"
        )


def check_differ(where: str, leaves: Sequence[Any]) -> None:
    """Raises a :class:`DataError` for examples that are all alike: nothing is learnt of them.

    Args:
      leaves: arrays ``[N, ...]``, of which each example has a row.
    """
    count = min(map(len, leaves))
    # on CPU a view; elsewhere no more than is looked at is fetched
    leaves = [np.asarray(leaf) if _lies_in_memory(leaf) else leaf for leaf in leaves]
    # nearly always the first two differ, and no more is looked at
    for start, stop in ((1, 2), *((start, start + 256) for start in range(2, count, 256))):
        if not all((np.asarray(leaf[start:stop]) == np.asarray(leaf[:1])).all() for leaf in leaves):
            return
    if count > 1:
        raise DataError(f"{where}: expected examples that differ, got {count} alike")


def _lies_in_memory(leaf: Any) -> bool:
    return not hasattr(leaf, "devices") or all(one.platform == "cpu" for one in leaf.devices())


def is_channels_first(shape: Sequence[int]) -> bool:
    """Tells the shape of an image ``[C, H, W]``: fewer than five channels, and larger sides."""
    return len(shape) == 3 and shape[0] < 5 <= min(shape[1:])


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and deviation of each channel, of one example's rank."""
    axes = tuple(range(x.ndim - 1))
    count = math.prod(x.shape) // x.shape[_channel_axis(x)]
    mean = sum(block.sum(axis=axes) for block in _blocks(x)) / count
    square = sum(np.square(block - mean).sum(axis=axes) for block in _blocks(x)) / count
    return _finished(mean, square, x)


def part_statistics(
    x: np.ndarray, parts: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Computes the same of parts of the examples, each from its own examples alone.

    Args:
      x: ``[N, ..., C]``, or images ``[N, C, H, W]``.
      parts: positions of the examples of each part.
    """
    if x.ndim == 2:
        return [_statistics(x[rows]) for rows in parts]
    # mean and squares of each example, of which those of any part are made without the others
    axes, moments = tuple(range(1, x.ndim - 1)), []
    for block in _blocks(x):
        mean = block.mean(axis=axes, keepdims=True)
        squares = np.square(block - mean).mean(axis=axes)
        moments.append((mean.reshape(len(block), -1), squares))
    means, squares = (np.concatenate(side) for side in zip(*moments, strict=True))
    found = []
    for rows in parts:
        mean = means[rows].mean(axis=0)
        square = (squares[rows] + np.square(means[rows] - mean)).mean(axis=0)
        found.append(_finished(mean, square, x))
    return found


def _channel_axis(x: np.ndarray) -> int:
    return 1 if is_channels_first(x.shape[1:]) else x.ndim - 1


def _finished(mean: np.ndarray, square: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation, of mean and variance, with the rank of an example of ``x``."""
    std = np.sqrt(square).astype(np.float32)
    # a constant channel, whose deviation is nothing but rounding, is divided by 1
    constant = (std <= 1e-7 * np.abs(mean)) | (std < np.finfo(np.float32).tiny)
    std = np.where(constant, np.float32(1), std)
    channels = _channel_axis(x)
    shape = tuple(-1 if axis == channels else 1 for axis in range(1, x.ndim))
    return np.asarray(mean, np.float32).reshape(shape), std.reshape(shape)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Yields ``x`` in float64, channels last, a few examples at a time, to bound the memory."""
    step, last = max(1, _BLOCK // x[0].size), _channel_axis(x)
    blocks = (x[i : i + step].astype(np.float64) for i in range(0, len(x), step))
    return (np.moveaxis(block, last, -1) for block in blocks)


_META = "meta.json"


def cache_root(configured: str | None) -> Path:
    """Returns the cache folder, which need not exist.

    It is ``configured``, else ``$JAXUNLEARN_CACHE``, else ``jaxunlearn`` below
    ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    chosen = configured or os.environ.get("JAXUNLEARN_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification has relative paths ignored
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    return Path(base) / "jaxunlearn"


def read_entry(folder: Path) -> Dataset | None:
    """Reads the data set written to ``folder``; ``None`` if it is absent or damaged."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        arrays = {key: np.load(folder / f"{key}.npy", allow_pickle=False) for key in ARRAYS}
        names = tuple(meta["class_names"])
        if fingerprint(arrays, names) != meta["fingerprint"] or _meta_sum(meta) != meta["sum"]:
            return None
        shape = (1,) * (arrays["train_x"].ndim - 2) + (-1,)
        mean, std = (np.asarray(meta[k], np.float32).reshape(shape) for k in ("mean", "std"))
        return Dataset(
            **arrays, class_names=names, mean=mean, std=std, fingerprint=meta["fingerprint"]
        )
    # whatever is wrong with an entry, the remedy is to decode anew
    except Exception:
        return None


def write_entry(
    folder: Path, dataset: Dataset, source: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes ``folder`` as a whole or not at all; a failure is a warning.

    Args:
      source: name and folder of the set, by which a purge finds it however it was read.
    """
    # not tempfile, whose folders nobody else could read in a shared cache
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _drop_leftovers(folder)
        temporary.mkdir()
        _write_files(temporary, dataset, source)
        _move(temporary, folder)
    except OSError as error:
        warnings.warn(
            f"decoded images are not kept, the next run decodes them again: "
            f"cannot write the cache folder {folder.parent} ({error})",
            stacklevel=2,
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _drop_leftovers(folder: Path) -> None:
    """Removes what killed processes left half-written of this entry, an hour ago or longer."""
    half = re.compile(rf"\.{re.escape(folder.name)}-[0-9a-f]{{32}}")
    for path in folder.parent.iterdir():
        if half.fullmatch(path.name) and time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


def _write_files(folder: Path, dataset: Dataset, source: Mapping[str, str]) -> None:
    for key in ARRAYS:
        np.save(folder / f"{key}.npy", getattr(dataset, key), allow_pickle=False)
    meta = {
        "class_names": dataset.class_names,
        "mean": dataset.mean.ravel().tolist(),
        "std": dataset.std.ravel().tolist(),
        "fingerprint": dataset.fingerprint,
        "source": dict(source),
    }
    meta["sum"] = _meta_sum(meta)
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")


def _meta_sum(meta: Mapping[str, Any]) -> str:
    """Computes the SHA-256 of what the fingerprint does not cover: the statistics."""
    told = [meta["fingerprint"], meta["mean"], meta["std"]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _move(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        # a damaged entry, or one that another process has just finished
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
