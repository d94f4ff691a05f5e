"""Data sets by name, as NumPy arrays: a source is one function and one row of :data:`SOURCES`.

Other packages bring theirs by an entry point in the group ``jaxunlearn.data``, a running program
by :func:`register_source`. Nothing here imports JAX; scikit-learn, Pillow and TFDS are imported
only by what needs them.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxunlearn.config import DataConfig
from jaxunlearn.config.overrides import check_value
from jaxunlearn.core.errors import ConfigError, DataError, did_you_mean, expect
from jaxunlearn.core.registry import Registry, load
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.sources.folders import is_folder, load_folder

__all__ = ["SOURCES", "Source", "load_dataset", "register_source", "unknown_name"]

Load = Callable[..., Dataset]


class Source(NamedTuple):
    """Row of the registry.

    Attributes:
      target: a function of the configuration's ``data`` section that returns the data set, or
        ``"module:function"``, imported when it is first used. Further arguments, by keyword alone,
        are the source's options: ``data.options.ARGUMENT=value``.
      summary: one line for ``jaxunlearn list``.
    """

    target: str | Load
    summary: str = ""


_TFDS = "jaxunlearn.data.sources.tfds:load_tfds"
_NPZ = "jaxunlearn.data.sources.arrays:load_npz"
_TEXT = "jaxunlearn.data.sources.text"

SOURCES = Registry(
    "data",
    Source,
    {
        "digits": Source(
            "jaxunlearn.data.sources.arrays:load_digits",
            "handwritten digits 8x8 grey, 10 classes, 997 + 800; embedded (scikit-learn)",
        ),
        "mnist": Source(_TFDS, "handwritten digits 28x28 grey, 10 classes, 60,000 + 10,000; TFDS"),
        "fashion_mnist": Source(
            _TFDS, "articles of clothing 28x28 grey, 10 classes, 60,000 + 10,000; TFDS"
        ),
        "cifar10": Source(
            _TFDS, "animals and vehicles 32x32 colour, 10 classes, 50,000 + 10,000; TFDS"
        ),
        "authors": Source(
            "jaxunlearn.data.sources.authors:load_authors",
            "questions and answers on made-up authors, general knowledge besides; embedded",
        ),
        "tofu": Source(
            f"{_TEXT}:load_tofu",
            "questions and answers on 200 made-up authors, 4,000 + 617; a folder in TFDS layout",
        ),
        "facts": Source(
            "jaxunlearn.data.sources.facts:load_facts",
            "made-up facts with a corrupted version, to be restored by unlearning; embedded",
        ),
        "trec": Source(f"{_TEXT}:load_trec", "questions by what they ask for, 5,452 + 500; TFDS"),
    },
)
"""The known names. Any other TFDS image set goes by its TFDS name, any other folder in TFDS
layout by its name below ``data.dir``, arrays of one's own by a path ending in ``.npz``, texts by
one ending in ``.jsonl``, images by the path of a folder ``train/CLASS/*.png``."""


def register_source(name: str, target: str | Load, *, summary: str = "") -> None:
    """Adds a source of data: ``data.name=NAME`` then finds it; see :class:`Source`.

    Raises:
      ConfigError: the name is taken.
    """
    SOURCES.register(name, Source(target, summary))


def load_dataset(config: DataConfig) -> Dataset:
    """Loads the data set that ``config.name`` names, from disk wherever possible.

    ``digits`` comes with scikit-learn; it has no official split, so 800 of its
    1,797 images, the same ones every time and in proportion to the classes, are
    the test split. A name ending in ``.npz`` is a path to a file with the keys
    ``train_x``, ``train_y``, ``test_x``, ``test_y`` and perhaps ``class_names``; one ending in
    ``.jsonl`` is a path to texts, see :func:`jaxunlearn.data.sources.text.load_jsonl`.
    A folder with ``train`` in it is read by :func:`jaxunlearn.data.sources.folders.load_folder`.
    Every other name that is not registered is a TFDS image set; its decoded arrays are kept in
    the cache folder (``config.cache``, else ``$JAXUNLEARN_CACHE``, else ``jaxunlearn`` in
    the user's cache directory).

    Args:
      config: the fields ``name``, ``options``, ``dir``, ``image_size``, ``cache``, ``stream`` and
        ``workers`` are read, by a source of one's own perhaps others.

    Returns:
      The data set; the arrays are the caller's own.

    Raises:
      DataError: the data are unknown, missing, incomplete, damaged or not
        labelled images; the message names the file or folder.
      ConfigError: an option that the source does not have, or of another type.
      TypeError: a registered source returns something else than a data set.
    """
    if config.image_size is not None and config.image_size < 1:
        raise DataError(f"data.image_size: expected a positive number, got {config.image_size}")
    if config.name in SOURCES:
        target = SOURCES[config.name].target
    elif is_folder(config.name):
        target = load_folder
    else:
        by_ending = {".npz": _NPZ, ".jsonl": f"{_TEXT}:load_jsonl"}
        target = by_ending.get(os.path.splitext(config.name)[1], _TFDS)
    target = load(target)
    _check_options(config, target)
    dataset = target(config, **config.options)
    expect(f"data.name={config.name}", dataset, Dataset, "; make_dataset makes one")
    if config.stream:
        from jaxunlearn.data.streams import Stream

        if not isinstance(dataset.train_x, Stream):
            raise DataError(
                "data.stream: expected data that are read one by one (a TFDS image set, a folder "
                f"of images or of array_record files), got data.name={config.name}"
            )
    return dataset


def _check_options(config: DataConfig, target: Load) -> None:
    """Checks options by the arguments of a source that are given by keyword alone."""
    check_value("data.options", config.options, Mapping[str, Any])
    if not config.options:
        return
    known = inspect.signature(target).parameters.values()
    own = {one.name: one.annotation for one in known if one.kind is one.KEYWORD_ONLY}
    if any(one.kind is one.VAR_KEYWORD for one in known):
        own |= {name: Any for name in config.options if name not in own}
    for name, value in config.options.items():
        if name not in own:
            wanted = f"one of {', '.join(own)}" if own else "none"
            raise ConfigError(
                f"data.options: expected {wanted} for data.name={config.name}, got {name!r}"
                f"{did_you_mean(name, own)}"
            )
        if own[name] is not inspect.Parameter.empty and not isinstance(own[name], str):
            check_value(f"data.options.{name}", value, own[name])


def unknown_name(name: str, known: Iterable[str]) -> DataError:
    """Returns the error to raise; ``known`` are the names that may have been meant."""
    return DataError(
        f"data.name: expected one of {', '.join(SOURCES)}, another TFDS image set, a folder in "
        "TFDS layout below data.dir, a path ending in .npz or .jsonl, or a folder with train in "
        "it; "
        f"got {name!r}{did_you_mean(name, known)}"
    )
