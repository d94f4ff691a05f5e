"""Folders of one's own: images in a folder of each class, or array_record files.

``ROOT/train/CLASS/*.png`` and ``ROOT/test/CLASS/*.png`` (or ``.jpg``, ``.bmp``, ``.webp``), or
``ROOT/train*.array_record*`` and ``ROOT/test*.array_record*``. With ``data.stream=true`` neither
is read before a batch asks for it; else all is, once.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.core.errors import DataError, brief, sentence
from jaxunlearn.core.files import most_bytes
from jaxunlearn.core.registry import load
from jaxunlearn.data.dataset import Dataset, check_labels, make_dataset, resize

_LOOKED_AT = 64
"""Images of a folder that tell whether it holds colours."""
SPLITS = ("train", "test")
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class ImageFolder:
    """Images of a folder ``CLASS/*.png``, decoded one at a time: a source for a stream.

    Attributes:
      class_names: of the folders, sorted.
      labels: ``int32 [N]``, the folder of each image.
      files: paths, by class and name.
    """

    def __init__(
        self, folder: str | os.PathLike[str], size: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Lists the images.

        Args:
          folder: with a folder for each class.
          size: pixels a side that all images are resized to; ``None``: they must agree.
          class_names: of the training split, where this is another; its folders are among them.

        Raises:
          DataError: no folders of classes, no images, or a class that is not among the names.
        """
        root = Path(os.path.expanduser(folder))
        if not root.is_dir():
            raise DataError(f"{root}: expected a folder with one of each class, found none")
        found = sorted(one.name for one in root.iterdir() if one.is_dir() and one.name[0] != ".")
        names = found if class_names is None else list(class_names)
        if strange := sorted(set(found) - set(names)):
            raise DataError(f"{root}: expected classes of the training split, found {strange[:5]}")
        each = [_images(root / name) if name in found else [] for name in names]
        self.files = [path for files in each for path in files]
        if not self.files:
            raise DataError(
                f"{root}: expected images {', '.join(_ENDINGS)} in a folder of each class, found "
                f"none in {brief(found)}"
            )
        self.class_names = tuple(names)
        self.labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(f) for f in each])
        self.size = size
        # of all of a large folder not even the headers are read
        some = np.unique(np.linspace(0, len(self.files) - 1, _LOOKED_AT).astype(int))
        self.mode = "RGB" if {_mode_of(self.files[one]) for one in some} - {"1", "L"} else "L"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[np.ndarray, int]:
        """Returns one image ``uint8 [H, W, C]`` and its label; the error names a damaged file."""
        with _explained(self.files[position]) as opened:
            _check_mode(opened, self.mode)
            image = np.asarray(opened.convert(self.mode))
        return resize(image.reshape(*image.shape[:2], -1), self.size), int(self.labels[position])

    def told(self) -> list[Any]:
        """Returns what is known of the images without reading them: names and sizes."""
        return [[f"{path.parent.name}/{path.name}", path.stat().st_size] for path in self.files]


def _mode_of(path: Path) -> str:
    with _explained(path) as image:
        _check_mode(image, "RGB")
        return str(image.mode)


def _check_mode(image: Any, wanted: str) -> None:
    """Checks that no image loses its depth or its colours."""
    if image.mode[0] in "IF":
        raise ValueError(
            f"one of more than 8 bits, {image.mode}; ju.data.stream takes a source that reads those"
        )
    if wanted == "L" and image.mode not in ("1", "L", "LA"):
        raise ValueError(
            f"one in colour, {image.mode}, where others are grey; save all in one mode"
        )


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[Any]:
    """Opens an image; whatever is wrong with it, the error names the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:
        raise DataError(f"{path}: expected an image, got {sentence(error)}") from error


def is_folder(name: str) -> bool:
    """Tells whether a name of data is a folder of images or of array_record files."""
    root = Path(os.path.expanduser(name))
    return root.is_dir() and ((root / "train").is_dir() or bool(_records(root, "train")))


def load_folder(
    config: DataConfig, *, decode: str | None = None, class_names: Sequence[str] = ()
) -> Dataset:
    """Loads the folder that ``config.name`` is a path to.

    Args:
      config: its fields ``name``, ``image_size``, ``stream`` and ``workers`` are read.
      decode: of array_record files: ``"module:function"``, ``bytes -> (x, label)``. By default a
        record is an ``.npz`` with ``x`` and ``y``.
      class_names: of the labels of array_record files; else their numbers.

    Raises:
      DataError: a split is missing, or an image or record does not decode.
    """
    root = Path(os.path.expanduser(config.name))
    if (root / "train").is_dir():
        train = ImageFolder(root / "train", config.image_size)
        test = ImageFolder(root / "test", config.image_size, train.class_names)
        test.mode = train.mode
        labels = {"train": train.labels, "test": test.labels}
        told = [train.told(), test.told()]
        names = train.class_names
        return assemble(config, {"train": train, "test": test}, labels, names, told=told)
    sources, sizes = {}, []
    for split in SPLITS:
        files = _records(root, split)
        if not files:
            raise DataError(f"{root}: expected files {split}*.array_record, found none")
        sources[split] = open_records(files)
        sizes.append([[path.name, path.stat().st_size] for path in files])
    unpack = unpack_npz if decode is None else load(decode)
    return assemble(config, sources, None, class_names, told=sizes, decode=unpack)


def _records(root: Path, split: str) -> list[Path]:
    return sorted(root.glob(f"{split}*.array_record*"))


def open_records(files: Sequence[Path]) -> Any:
    """Opens array_record files as one source of bytes; :class:`DataError` for damaged ones."""
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
    except ImportError as error:
        raise DataError(f"reading array_record files needs array_record ({error})") from error
    try:
        return ArrayRecordDataSource([str(path) for path in files])
    except Exception as error:
        raise DataError(
            f"{files[0].parent}: expected array_record files, got {sentence(error)}"
        ) from error


def unpack_npz(record: bytes) -> tuple[np.ndarray, int]:
    """Returns ``x`` and ``y`` of a record that is an ``.npz``."""
    with np.load(io.BytesIO(record), allow_pickle=False) as found:
        return found["x"], int(found["y"])


def assemble(
    config: DataConfig,
    sources: dict[str, Any],
    labels: dict[str, np.ndarray] | None,
    class_names: Sequence[str],
    *,
    told: Any,
    decode: Callable[[Any], Any] | None = None,
) -> Dataset:
    """Makes a data set of the sources of both splits: streamed, or read whole.

    Args:
      labels: of each split; ``None``: those that the records hold.
      told: JSON, what tells these data from others without reading them. The fingerprint of
        streamed data follows from it, that of others from the contents.
    """
    from jaxunlearn.data.streams import Stream, stream

    x: dict[str, Stream] = {}
    for split in SPLITS:
        where = f"{config.name}: {split}"
        x[split] = stream(sources[split], decode=decode, workers=config.workers, name=where)
    y = labels or {split: x[split].labels for split in SPLITS}
    y = {split: np.asarray(own, np.int32) for split, own in y.items()}
    names = [*class_names] or [str(label) for label in range(int(y["train"].max()) + 1)]
    for split in SPLITS:
        check_labels(f"{config.name}: {split}", y[split], len(names))
    if x["train"].form != x["test"].form:
        raise DataError(
            f"{config.name}: expected test examples like those of training, "
            f"{x['train'].described}, got {x['test'].described}; data.image_size= makes images "
            "alike"
        )
    arrays: dict[str, Any] = {f"{split}_y": y[split] for split in SPLITS}
    if not config.stream:
        arrays |= {f"{split}_x": read_whole(x[split]) for split in SPLITS}
        return make_dataset(arrays, names)
    arrays |= {f"{split}_x": x[split] for split in SPLITS}
    return streamed_dataset(arrays, names, told)


def streamed_dataset(arrays: dict[str, Any], class_names: Sequence[str], told: Any) -> Dataset:
    """Makes a data set whose inputs are streams, bytes scaled to lie between 0 and 1.

    No statistics are taken: they would need all examples, those to be forgotten among them.
    """
    mean = std = None
    x, y = arrays["train_x"], [arrays[f"{split}_y"].tobytes().hex() for split in SPLITS]
    if x.is_array and x.dtype == np.uint8:
        shape = (1,) * (x.ndim - 2) + (x.shape[-1],)
        mean, std = np.zeros(shape, np.float32), np.full(shape, 255, np.float32)
    text = json.dumps(["streamed", told, x.described, list(class_names)])
    digest = hashlib.sha256((text + "".join(y)).encode()).hexdigest()
    return Dataset(**arrays, class_names=tuple(class_names), mean=mean, std=std, fingerprint=digest)


def read_whole(x: Any) -> Any:
    """Reads a stream into memory, if it fits."""
    if x.nbytes > most_bytes():
        raise DataError(
            f"data.stream: expected true for examples of {x.nbytes:,} bytes, as this machine has "
            f"{most_bytes():,}"
        )
    return x.read(np.arange(len(x)))
