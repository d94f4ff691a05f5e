"""Image sets in the folder layout of TensorFlow Datasets (TFDS), as arrays.

A prepared folder ``NAME/[CONFIG/]VERSION`` is found and checked without TFDS;
TFDS is imported to decode it, once, and to prepare a set that is not there yet.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.data.cache import cache_root, read_entry, write_entry
from jaxunlearn.data.sources import SOURCES, Dataset, check_labels, make_dataset, resize
from jaxunlearn.errors import DataError

__all__ = ["load_tfds"]

# changes when what is cached for the same folder changes
_CACHE_FORMAT = 1
_BLOCK = 256
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# NAME, NAME/CONFIG, either with :VERSION; nothing that climbs out of the folder
_NAME = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)*)(:(?P<version>\d+\.\d+\.\d+))?")
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_OR_DIR = "or set data.dir to a folder that holds the set in TFDS layout (array_record)"


class Prepared(NamedTuple):
    """A version folder whose files are all there.

    Attributes:
      folder: ``.../NAME/[CONFIG/]VERSION``.
      splits: the TFDS splits that serve as training and as test split.
      shards: for each of the two, file and number of examples.
    """

    folder: Path
    splits: tuple[str, str]
    shards: tuple[list[tuple[Path, int]], list[tuple[Path, int]]]


def load_tfds(config: DataConfig) -> Dataset:
    """The image set ``config.name`` from the cache, from a prepared folder, or from TFDS.

    With ``config.dir`` the set is only ever read, from that folder. Without, it is
    read from TFDS's own folder (``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``)
    and downloaded and prepared there if absent, which needs TensorFlow once.

    Raises:
      DataError: see :func:`jaxunlearn.data.sources.load_dataset`.
    """
    prepared = _check_folder(_find_folder(config))
    entry = cache_root(config.cache) / _entry_name(config, prepared)
    dataset = read_entry(entry)
    if dataset is None:
        dataset = _decode(prepared, config.image_size)
        write_entry(entry, dataset)
    return dataset


# Finding the folder


def _find_folder(config: DataConfig) -> Path:
    match = _NAME.fullmatch(config.name)
    root = config.dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = Path(os.path.expanduser(root))
    if match is None:
        raise _unknown(config.name, SOURCES)
    if config.dir is not None and not folder.is_dir():
        raise DataError(f"data.dir: expected a folder, found none at {folder}")
    version = _version_folder(folder / match["path"], match["version"])
    if version is not None:
        return version
    if config.dir is None:
        return _prepare(config.name)
    raise _not_below(folder, match["path"], config.name)


def _version_folder(folder: Path, version: str | None) -> Path | None:
    """The folder of that version, or of the highest; ``None`` if there is none."""
    if version is not None:
        return folder / version if (folder / version).is_dir() else None
    found = [v for v in _listing(folder) if _VERSION.fullmatch(v)]
    return folder / max(found, key=lambda v: [int(n) for n in v.split(".")]) if found else None


def _not_below(root: Path, path: str, name: str) -> DataError:
    folder = root / path
    if folder.is_dir():
        return DataError(
            f"{folder}: expected the version folder of {name!r}, such as 1.0.0, "
            f"found {_listed(_listing(folder))}"
        )
    here = [entry for entry in _listing(root) if (root / entry).is_dir()]
    download = " (unset data.dir to have TFDS download it)" if name in SOURCES else ""
    return DataError(
        f"{folder}: expected the data set {name!r} in TFDS layout, found no such folder in "
        f"{root}, only {_listed(here)}{download}; built in are {', '.join(SOURCES)}"
        f"{_close(name, [*SOURCES, *here])}"
    )


def _unknown(name: str, known: Iterable[str]) -> DataError:
    return DataError(
        f"data.name: expected one of {', '.join(SOURCES)}, another TFDS image set, a folder in "
        f"TFDS layout below data.dir, or a path ending in .npz; got {name!r}{_close(name, known)}"
    )


def _close(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, set(known) - {name}, n=3)
    return f". Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


# Preparing it with TFDS


def _prepare(name: str) -> Path:
    """Downloads and prepares ``name`` in TFDS's own folder, unless it is there."""
    tfds = _import_tfds(name)
    known = tfds.list_builders(with_community_datasets=False)
    if re.split("[/:]", name)[0] not in known:
        raise _unknown(name, [*SOURCES, *known])
    with _quiet():
        try:
            builder = tfds.builder(name)
            ready = builder.is_prepared()
        except Exception as error:
            raise DataError(f"data.name: TFDS cannot open {name!r}: {error}") from error
        if not ready:
            _download(builder, name)
    return Path(builder.data_path)


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


def _import_tfds(what: object) -> Any:
    try:
        with _quiet():
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
def _quiet() -> Iterator[None]:
    """Silences TFDS's remarks, such as on what other image decoders there are."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# Checking the folder


def _check_folder(folder: Path) -> Prepared:
    """Checks by names and sizes, without TFDS, that both splits are there in full."""
    info = _read_json(folder, "dataset_info.json")
    _read_json(folder, "features.json")
    formats = [info.get("fileFormat"), *info.get("alternativeFileFormats", [])]
    if "array_record" not in formats:
        raise DataError(
            f"{folder}: expected files of the format array_record, which is read without "
            f"TensorFlow, found {formats[0]}; prepare the set again in another folder with "
            "TFDS's file_format='array_record' and set data.dir to that folder"
        )
    splits = {split["name"]: split for split in info.get("splits", [])}
    test = "test" if "test" in splits else "validation"
    if "train" not in splits or test not in splits:
        raise DataError(
            f"{folder}: expected the splits train and test (or validation), found {_listed(splits)}"
        )
    train_shards, test_shards = (
        _check_shards(folder, info.get("name", ""), splits[split]) for split in ("train", test)
    )
    return Prepared(folder, ("train", test), (train_shards, test_shards))


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} instead of an object")
        return content
    except FileNotFoundError:
        raise DataError(
            f"{folder}: expected a complete data set in TFDS layout, found no {name}, "
            f"only {_listed(_listing(folder))}"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / name}: expected JSON as TFDS writes it, got {error}") from error


def _check_shards(folder: Path, name: str, split: dict[str, Any]) -> list[tuple[Path, int]]:
    counts = [int(n) for n in split.get("shardLengths", [])]
    if sum(counts) == 0:
        raise DataError(
            f"{folder / 'dataset_info.json'}: expected shardLengths with at least one example "
            f"for the split {split['name']}, found {split.get('shardLengths')}"
        )
    shards = [
        (folder / _shard_name(split, name, index, len(counts)), count)
        for index, count in enumerate(counts)
    ]
    missing = [path.name for path, _ in shards if not path.is_file()]
    if missing:
        raise DataError(
            f"{folder}: expected {len(shards)} shards of the split {split['name']}, "
            f"found {len(shards) - len(missing)}; missing: {_listed(missing[:5])}"
        )
    for path, count in shards:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: expected {count} examples, found an empty file")
    return shards


def _shard_name(split: dict[str, Any], name: str, index: int, total: int) -> str:
    values = {"DATASET": name, "SPLIT": split["name"], "FILEFORMAT": "array_record"}
    values |= {"SHARD_INDEX": f"{index:05d}", "NUM_SHARDS": f"{total:05d}"}
    values["SHARD_X_OF_Y"] = f"{index:05d}-of-{total:05d}"
    template = split.get("filepathTemplate") or _DEFAULT_TEMPLATE
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template)


def _entry_name(config: DataConfig, prepared: Prepared) -> str:
    """Changes with whatever changes the decoded arrays."""
    metadata = [
        (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(prepared.folder.iterdir())
        if path.name.endswith((".json", ".labels.txt"))
    ]
    files = [path for shards in prepared.shards for path, _ in shards]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    identity = [_CACHE_FORMAT, config.name, config.image_size, prepared.splits, metadata, stats]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_.-]', '-', config.name)}-{digest[:20]}"


# Decoding it


def _decode(prepared: Prepared, size: int | None) -> Dataset:
    """Both splits as arrays; every record is read, so that damage is found here."""
    tfds = _import_tfds(prepared.folder)
    _count_records(prepared)
    with _quiet():
        try:
            builder = tfds.builder_from_directory(prepared.folder)
            features = dict(builder.info.features)
        except Exception as error:
            raise DataError(f"{prepared.folder}: TFDS cannot open it: {error}") from error
        names = _class_names(prepared.folder, features, tfds)
        total = sum(count for shards in prepared.shards for _, count in shards)
        arrays = {}
        with _progress(prepared.folder, total) as advance:
            for key, split in zip(("train", "test"), prepared.splits, strict=True):
                source = builder.as_data_source(split=split)
                where = f"{prepared.folder}: split {split}"
                x, y = _decode_split(where, source, size, advance)
                check_labels(where, y, len(names))
                arrays[f"{key}_x"], arrays[f"{key}_y"] = x, y
    train, test = arrays["train_x"].shape[1:], arrays["test_x"].shape[1:]
    if train != test:
        raise _differing(f"{prepared.folder}: train and {prepared.splits[1]}", train, test)
    return make_dataset(arrays, names)


def _count_records(prepared: Prepared) -> None:
    """A shard that was cut off has lost its index, and would decode as empty."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise DataError(
            f"{prepared.folder}: reading it needs array_record: run pip install array_record "
            f"({error})"
        ) from error
    for path, count in (shard for shards in prepared.shards for shard in shards):
        try:
            found = ArrayRecordReader(str(path)).num_records()
        except Exception as error:
            raise DataError(f"{path}: expected {count} examples, got {error}") from error
        if found != count:
            raise DataError(
                f"{path}: expected {count} examples, found {found}; the file is cut off or damaged"
            )


def _class_names(folder: Path, features: dict[str, Any], tfds: Any) -> list[str]:
    label, image = features.get("label"), features.get("image")
    if not (isinstance(label, tfds.features.ClassLabel) and isinstance(image, tfds.features.Image)):
        found = [f"{key}: {type(feature).__name__}" for key, feature in features.items()]
        raise DataError(
            f"{folder}: expected an image set with the features image: Image and "
            f"label: ClassLabel, found {_listed(found)}"
        )
    if not label.num_classes or np.dtype(image.np_dtype) != np.uint8:
        raise DataError(
            f"{folder}: expected images of uint8 and a known number of classes, "
            f"found {np.dtype(image.np_dtype)} and {label.num_classes} classes"
        )
    return list(label.names)


def _decode_split(
    where: str, source: Any, size: int | None, advance: Any
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.zeros(0, np.uint8), np.zeros(len(source), np.int32)
    for start in range(0, len(source), _BLOCK):
        indices = range(start, min(start + _BLOCK, len(source)))
        try:
            records = source.__getitems__(list(indices))
            images = [resize(record["image"], size) for record in records]
        except Exception as error:
            raise DataError(
                f"{where}: expected readable examples, got a damaged one "
                f"among {start} to {indices[-1]}: {error}"
            ) from error
        if start == 0:
            x = np.zeros((len(source), *images[0].shape), np.uint8)
        for index, image in zip(indices, images, strict=True):
            if image.shape != x.shape[1:]:
                raise _differing(where, x.shape[1:], image.shape)
            x[index] = image
        y[start : indices.stop] = [record["label"] for record in records]
        advance(len(records))
    return x, y


def _differing(where: str, first: tuple[int, ...], other: tuple[int, ...]) -> DataError:
    return DataError(
        f"{where}: expected images of one shape, got {first} and {other}; "
        "set data.image_size= to the pixels a side that all are to be resized to"
    )


@contextlib.contextmanager
def _progress(folder: Path, total: int) -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere; yields the function that moves it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"decoding {folder.parent.name} (once)", total=total)
        yield lambda count: progress.update(task, advance=count)
