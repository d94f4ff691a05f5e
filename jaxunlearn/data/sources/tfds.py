"""Image sets in the folder layout of TensorFlow Datasets (TFDS), as arrays.

A prepared folder ``NAME/[CONFIG/]VERSION`` is found and checked without TFDS;
TFDS is imported to decode it, once, and to prepare a set that is not there yet.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxunlearn.config import DataConfig
from jaxunlearn.core.errors import DataError, brief, did_you_mean, sentence
from jaxunlearn.data.dataset import Dataset, cache_root, read_entry, write_entry
from jaxunlearn.data.sources import SOURCES, unknown_name
from jaxunlearn.data.sources.tfds_decode import Shards, decode, prepare, stream_folder

# changes when what is cached for the same folder changes
_CACHE_FORMAT = 1
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# NAME, NAME/CONFIG, either with :VERSION; nothing that climbs out of the folder
_NAME = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)*)(:(?P<version>\d+\.\d+\.\d+))?")
_FEATURES = "tensorflow_datasets.core.features."
_FEATURE = re.compile(re.escape(_FEATURES) + r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def load_tfds(config: DataConfig) -> Dataset:
    """Loads the image set ``config.name`` from the cache, from a prepared folder, or from TFDS.

    With ``config.stream`` the images stay where they are, and labels alone are cached.
    With ``config.dir`` the set is only ever read, from that folder. Without, it is
    read from TFDS's own folder (``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``)
    and downloaded and prepared there if absent, which needs TensorFlow once.

    Raises:
      DataError: see :func:`jaxunlearn.data.sources.load_dataset`.
    """
    folder = find_folder(config)
    shards = check_folder(folder)
    entry = cache_root(config.cache) / _entry_name(config, folder, shards)
    if config.stream:
        return stream_folder(folder, shards, config, entry)
    dataset = read_entry(entry)
    if dataset is None:
        dataset = decode(folder, shards, config.image_size)
        write_entry(entry, dataset, {"name": config.name, "folder": os.path.realpath(folder)})
    return dataset


# Finding the folder


def find_folder(config: DataConfig) -> Path:
    """Finds the version folder of a set in TFDS layout; see :func:`load_tfds`."""
    match = _NAME.fullmatch(config.name)
    root = config.dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = Path(os.path.expanduser(root))
    if match is None:
        raise unknown_name(config.name, SOURCES)
    if config.dir is not None and not folder.is_dir():
        raise DataError(f"data.dir: expected a folder, found none at {folder}")
    version = _version_folder(folder / match["path"], match["version"])
    if version is not None:
        return version
    if config.dir is None:
        return prepare(config.name)
    raise _not_below(folder, match["path"], config.name)


def _version_folder(folder: Path, version: str | None) -> Path | None:
    """Finds the folder of that version, or of the highest; ``None`` if there is none."""
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
    # the one known set in this layout that TFDS does not prepare
    prepared = name in SOURCES and name != "tofu"
    download = " (unset data.dir to have TFDS download it)" if prepared else ""
    return DataError(
        f"{folder}: expected the data set {name!r} in TFDS layout, found no such folder in "
        f"{root}, only {_listed(here)}{download}; built in are {', '.join(SOURCES)}"
        f"{did_you_mean(name, [*SOURCES, *here])}"
    )


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


# Checking it


def check_folder(folder: Path, *, test: bool = True) -> Shards:
    """Checks by names and sizes, without TFDS, that the splits are there in full.

    Args:
      test: whether a split to test on is needed beside that to train on.
    """
    try:
        return _read_info(folder, test)
    except DataError:
        raise
    # whatever is nested otherwise than TFDS does it
    except (TypeError, LookupError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{folder / 'dataset_info.json'}: expected what TFDS writes, got something else: "
            f"{sentence(error)}"
        ) from error


def _read_info(folder: Path, tested: bool) -> Shards:
    info = _read_json(folder, "dataset_info.json")
    _check_features(folder, _read_json(folder, "features.json"))
    formats = [info.get("fileFormat"), *info.get("alternativeFileFormats", [])]
    if "array_record" not in formats:
        raise DataError(
            f"{folder}: expected files of the format array_record, which is read without "
            f"TensorFlow, found {formats[0]}; prepare the set again in another folder with "
            "TFDS's file_format='array_record' and set data.dir to that folder"
        )
    splits = {split["name"]: split for split in info.get("splits", [])}
    test = "test" if "test" in splits else "validation"
    needed = ("train", test) if tested else ("train",)
    if any(split not in splits for split in needed):
        wanted = "splits train and test (or validation)" if tested else "split train"
        raise DataError(f"{folder}: expected the {wanted}, found {_listed(splits)}")
    name = info.get("name", "")
    return {split: _check_shards(folder, name, splits[split]) for split in needed}


def _check_features(folder: Path, features: Any) -> None:
    """Checks that ``features.json`` names TFDS's own classes alone: TFDS imports what it names."""
    waiting = [features]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        if not isinstance(node, dict):
            continue
        waiting += node.values()
        for key in ("pythonClassName", "python_class_name", "type"):
            name = node.get(key)
            if isinstance(name, str) and not _FEATURE.fullmatch(name):
                raise DataError(
                    f"{folder / 'features.json'}: expected features of TFDS's own, "
                    f"{_FEATURES}..., got {brief(name)}, which is not imported"
                )


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
    except (OSError, ValueError, TypeError, RecursionError) as error:
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


def _entry_name(config: DataConfig, folder: Path, shards: Shards) -> str:
    """Returns a name that changes with whatever changes the decoded arrays."""
    metadata = [
        (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
        if path.name.endswith((".json", ".labels.txt"))
    ]
    files = [path for split in shards.values() for path, _ in split]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    identity = [_CACHE_FORMAT, config.name, config.image_size, list(shards), metadata, stats]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_.-]', '-', config.name)}-{digest[:20]}"
