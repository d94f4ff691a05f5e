"""The TFDS library itself: imported, silenced, and made to prepare a set."""

import contextlib
import importlib.util
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxunlearn.data.names import SOURCES, unknown
from jaxunlearn.errors import DataError

__all__ = ["import_tfds", "prepare", "quiet"]

_OR_DIR = "or set data.dir to a folder that holds the set in TFDS layout (array_record)"


def prepare(name: str) -> Path:
    """Downloads and prepares ``name`` in TFDS's own folder, unless it is there."""
    tfds = import_tfds(name)
    known = tfds.list_builders(with_community_datasets=False)
    if re.split("[/:]", name)[0] not in known:
        raise unknown(name, [*SOURCES, *known])
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
    """The library, or a :class:`DataError` that names ``what`` was to be read with it."""
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
