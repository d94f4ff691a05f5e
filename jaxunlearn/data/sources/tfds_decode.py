"""The TFDS library itself: imported, silenced, made to prepare a set and to decode its folder.

Every record is read, so that damage is found here.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.core.errors import DataError
from jaxunlearn.data.dataset import Dataset, check_labels, make_dataset, resize
from jaxunlearn.data.sources import SOURCES, unknown_name
from jaxunlearn.data.sources.folders import SPLITS, assemble

_OR_DIR = "or set data.dir to a folder that holds the set in TFDS layout (array_record)"


def prepare(name: str) -> Path:
    """Downloads and prepares ``name`` in TFDS's own folder, unless it is there."""
    tfds = import_tfds(name)
    known = tfds.list_builders(with_community_datasets=False)
    if re.split("[/:]", name)[0] not in known:
        raise unknown_name(name, [*SOURCES, *known])
    with quiet():
        try:
            builder = tfds.builder(name)
            ready = builder.is_prepared()
        except Exception as error:
            raise DataError(f"data.name: TFDS cannot open {name!r}: {error}") from error
        if not ready:
            _download(builder, name)
    return Path(builder.data_path)


def import_tfds(what: object) -> Any:
    """Imports the library; the error names ``what`` was to be read with it."""
    try:
        with quiet():
            import tensorflow_datasets as tfds
    # a clash of versions below TFDS raises other types than ImportError
    except Exception as error:
        raise DataError(
            f"{what}: expected to read it with TFDS, but tensorflow_datasets cannot be imported "
            f"({type(error).__name__}: {error}); run pip install --upgrade tensorflow-datasets "
            "array_record, or use data.name=digits or an .npz file"
        ) from error
    return tfds


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS's remarks, such as on what other image decoders there are."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _download(builder: Any, name: str) -> None:
    absent = [m for m in ("tensorflow", "importlib_resources") if not _installed(m)]
    if absent:
        raise DataError(
            f"{name!r} is not prepared at {builder.data_path}, and preparing it needs "
            f"{' and '.join(absent)}, once: run pip install 'jaxunlearn[prepare]' and try again, "
            f"{_OR_DIR}"
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    # network, disk, checksums, TensorFlow: TFDS has no common type for its failures
    except Exception as error:
        raise DataError(
            f"{name!r}: TFDS could not download and prepare it at {builder.data_path}: "
            f"{type(error).__name__}: {error}. Try again with a network and free disk, {_OR_DIR}"
        ) from error


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# examples decoded together
_BLOCK = 256

Shards = dict[str, list[tuple[Path, int]]]
"""The TFDS split that serves for training, and the one for testing -> each of its
files with the number of examples."""


def decode(folder: Path, shards: Shards, size: int | None) -> Dataset:
    """Decodes both splits of a folder ``.../NAME/[CONFIG/]VERSION``."""
    tfds = import_tfds(folder)
    _count_records(folder, shards)
    total = sum(count for split in shards.values() for _, count in split)
    arrays = {}
    with quiet(), _progress(folder, total) as advance:
        builder, features = _open(folder, tfds)
        names = _class_names(folder, features, tfds)
        for key, split in zip(("train", "test"), shards, strict=True):
            where = f"{folder}: split {split}"
            x, y = _decode_split(where, builder.as_data_source(split=split), size, advance)
            check_labels(where, y, len(names))
            arrays[f"{key}_x"], arrays[f"{key}_y"] = x, y
    train, test = arrays["train_x"].shape[1:], arrays["test_x"].shape[1:]
    if train != test:
        raise _differing(f"{folder}: {' and '.join(shards)}", train, test)
    return make_dataset(arrays, names)


class _Labelled:
    """Makes an image, resized, and its label of a record; it can be sent to other processes."""

    def __init__(self, size: int | None) -> None:
        self.size = size

    def __call__(self, record: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        return resize(record["image"], self.size), int(record["label"])


def stream_folder(folder: Path, shards: Shards, config: DataConfig, entry: Path) -> Dataset:
    """Opens both splits of a folder without decoding them; labels are read once and cached.

    Args:
      entry: place of the decoded arrays in the cache, beside which the labels are put.
    """
    tfds = import_tfds(folder)
    _count_records(folder, shards)
    told = [[[path.name, path.stat().st_size] for path, _ in split] for split in shards.values()]
    with quiet():
        builder, features = _open(folder, tfds)
        names = _class_names(folder, features, tfds)
        pairs = list(zip(SPLITS, shards, strict=True))
        sources = {key: builder.as_data_source(split=split) for key, split in pairs}
        kept = entry.parent / f"{entry.name}-labels"
        labels = _kept_labels(kept, {key: len(source) for key, source in sources.items()})
        known = labels is not None
        if labels is None:
            bare = {"image": tfds.decode.SkipDecoding()}
            labels = {}
            for key, split in pairs:
                source = builder.as_data_source(split=split, decoders=bare)
                labels[key] = _labels_of(f"{folder}: split {split}", source)
    made = assemble(config, sources, labels, names, told=told, decode=_Labelled(config.image_size))
    if not known:
        source = {"name": config.name, "folder": os.path.realpath(folder)}
        _keep_labels(kept, labels, {"fingerprint": made.fingerprint, "source": source})
    return made


def _labels_of(where: str, source: Any) -> np.ndarray:
    """Reads the labels of a split, a few records together."""
    labels = np.zeros(len(source), np.int32)
    for start in range(0, len(source), _BLOCK):
        block = list(range(start, min(start + _BLOCK, len(source))))
        try:
            labels[block] = [record["label"] for record in source.__getitems__(block)]
        except Exception as error:
            raise DataError(
                f"{where}: expected readable examples, got a damaged one "
                f"among {start} to {block[-1]}: {error}"
            ) from error
    return labels


def _kept_labels(folder: Path, counts: Mapping[str, int]) -> dict[str, np.ndarray] | None:
    """Reads labels from the cache; ``None`` if they are absent or damaged."""
    try:
        found = {key: np.load(folder / f"{key}_y.npy", allow_pickle=False) for key in counts}
    except Exception:
        return None
    sound = all(one.shape == (counts[key],) and one.dtype == np.int32 for key, one in found.items())
    return found if sound else None


def _keep_labels(folder: Path, labels: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Writes labels into the cache; a cache that cannot be written costs time alone."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for key, own in labels.items():
            np.save(folder / f"{key}_y.npy", own, allow_pickle=False)
        # by which a purge finds what was made of these data
        (folder / "meta.json").write_text(json.dumps(dict(meta)))


def read_records(
    folder: Path, shards: Shards, fields: Sequence[str], label: str = ""
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Reads some features of all examples, texts decoded: of each split a list.

    Args:
      label: which of the features is a class; ``""``: none.

    Returns:
      The examples by split, and the names of the classes.
    """
    tfds = import_tfds(folder)
    _count_records(folder, shards)
    with quiet():
        builder, features = _open(folder, tfds)
        found = [f"{key}: {type(feature).__name__}" for key, feature in features.items()]
        kinds = {
            key: tfds.features.ClassLabel if key == label else tfds.features.Text for key in fields
        }
        if not all(isinstance(features.get(key), kind) for key, kind in kinds.items()):
            wanted = ", ".join(f"{key}: {kind.__name__}" for key, kind in kinds.items())
            raise DataError(f"{folder}: expected the features {wanted}, found {', '.join(found)}")
        records: dict[str, list[dict[str, Any]]] = {}
        for split in shards:
            source = builder.as_data_source(split=split)
            try:
                rows = source.__getitems__(list(range(len(source))))
                records[split] = [
                    {k: int(row[k]) if k == label else row[k].decode("utf-8") for k in fields}
                    for row in rows
                ]
            except Exception as error:
                raise DataError(
                    f"{folder}: split {split}: expected readable examples, got a damaged one: "
                    f"{error}"
                ) from error
    return records, list(features[label].names) if label else []


def _count_records(folder: Path, shards: Shards) -> None:
    """Counts records first: a shard that was cut off has lost its index and decodes as empty."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise DataError(
            f"{folder}: reading it needs array_record: run pip install array_record ({error})"
        ) from error
    for path, count in (file for split in shards.values() for file in split):
        try:
            found = ArrayRecordReader(str(path)).num_records()
        except Exception as error:
            raise DataError(f"{path}: expected {count} examples, got {error}") from error
        if found != count:
            raise DataError(
                f"{path}: expected {count} examples, found {found}; the file is cut off or damaged"
            )


def _open(folder: Path, tfds: Any) -> tuple[Any, dict[str, Any]]:
    """Opens a folder: TFDS's builder, and the features."""
    try:
        builder = tfds.builder_from_directory(folder)
        return builder, dict(builder.info.features)
    except Exception as error:
        raise DataError(f"{folder}: TFDS cannot open it: {error}") from error


def _class_names(folder: Path, features: dict[str, Any], tfds: Any) -> list[str]:
    label, image = features.get("label"), features.get("image")
    if not (isinstance(label, tfds.features.ClassLabel) and isinstance(image, tfds.features.Image)):
        found = [f"{key}: {type(feature).__name__}" for key, feature in features.items()]
        raise DataError(
            f"{folder}: expected an image set with the features image: Image and "
            f"label: ClassLabel, found {', '.join(found) or 'none'}"
        )
    if not label.num_classes or np.dtype(image.np_dtype) != np.uint8:
        raise DataError(
            f"{folder}: expected images of uint8 and a known number of classes, "
            f"found {np.dtype(image.np_dtype)} and {label.num_classes} classes"
        )
    return list(label.names)


def _decode_split(
    where: str, source: Any, size: int | None, advance: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.zeros(0, np.uint8), np.zeros(len(source), np.int32)
    for start in range(0, len(source), _BLOCK):
        block = range(start, min(start + _BLOCK, len(source)))
        images, y[start : block.stop] = _decode_block(where, source, block, size)
        if start == 0:
            x = np.zeros((len(source), *images[0].shape), np.uint8)
        for index, image in zip(block, images, strict=True):
            if image.shape != x.shape[1:]:
                raise _differing(where, x.shape[1:], image.shape)
            x[index] = image
        advance(len(block))
    return x, y


def _decode_block(
    where: str, source: Any, block: range, size: int | None
) -> tuple[list[np.ndarray], list[int]]:
    try:
        records = source.__getitems__(list(block))
        images = [resize(record["image"], size) for record in records]
        return images, [record["label"] for record in records]
    except Exception as error:
        raise DataError(
            f"{where}: expected readable examples, got a damaged one "
            f"among {block.start} to {block[-1]}: {error}"
        ) from error


def _differing(where: str, first: tuple[int, ...], other: tuple[int, ...]) -> DataError:
    return DataError(
        f"{where}: expected images of one shape, got {first} and {other}; "
        "set data.image_size= to the pixels a side that all are to be resized to"
    )


@contextlib.contextmanager
def _progress(folder: Path, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal, nothing elsewhere; yields the function that moves it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"decoding {folder.parent.name} (once)", total=total)
        yield lambda count: progress.advance(task, count)
