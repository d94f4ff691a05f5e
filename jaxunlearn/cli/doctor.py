"""What this machine has for jaxunlearn, and what is missing or broken."""

import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxunlearn.core.errors import DataError, sentence

OK, NOTE, BROKEN = "ok", "note", "broken"

_IMPORTED = ("jax", "flax", "optax", "orbax.checkpoint", "chex", "sklearn", "PIL", "matplotlib")
"""Packages that are imported to see that they work; the others are large, and only looked up."""
_EXTRAS = {
    "lm": ("safetensors", "tokenizers", "sentencepiece"),
    "stream": ("cloudpickle",),
    "prepare": ("tensorflow",),
    "test-frameworks": ("haiku", "equinox"),
}
_FOR = {
    "lm": "reads checkpoints and tokenizers of language models",
    "stream": "has worker processes read data that do not fit",
    "prepare": "has TFDS prepare a data set, once",
    "test-frameworks": "tests networks of Haiku and Equinox",
}


class Finding(NamedTuple):
    """Line of the doctor's: how it is (``ok``, ``note`` or ``broken``), with what, in words."""

    state: str
    subject: str
    text: str


def examine(runs: Path, data: str | None = None) -> Iterator[Finding]:
    """Yields what is found, subject by subject; whatever a check raises is a finding itself.

    Args:
      runs: folder of all runs.
      data: folder of data sets in TFDS layout; default: TFDS's own.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "machine": _machine,
        "packages": _packages,
        "extras": _extras,
        "devices": _devices,
        "cache": _cache,
        "data": lambda: _data(data),
        "runs": lambda: _runs(runs),
        "rows": _rows,
    }
    for subject, check in checks.items():
        try:
            yield from check()
        # a broken package raises anything
        except Exception as error:
            yield Finding(BROKEN, subject, f"{type(error).__name__}: {sentence(error)}")


def _machine() -> Iterator[Finding]:
    from jaxunlearn.core.files import most_bytes

    text = (
        f"{platform.system()} {platform.machine()}, {len(_cores())} cores, "
        f"{_size(most_bytes())} of memory, Python {platform.python_version()}"
    )
    yield Finding(OK, "machine", text)


def _cores() -> set[int]:
    # Linux tells those that this process may use
    return getattr(os, "sched_getaffinity", lambda _: set(range(os.cpu_count() or 1)))(0)


def _packages() -> Iterator[Finding]:
    from jaxunlearn import __version__

    try:
        wanted = importlib.metadata.requires("jaxunlearn") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(NOTE, "packages", "jaxunlearn is not installed, and used where it lies")
        wanted = []
    found, fine = [f"jaxunlearn {__version__}"], True
    for text in wanted:
        name, bounds = _split(text)
        if "extra ==" in text:
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            fine = False
            yield Finding(BROKEN, "packages", f"{name}: expected {bounds}, got none")
            continue
        found.append(f"{name} {version}")
        if not _within(version, bounds):
            fine = False
            yield Finding(BROKEN, "packages", f"{name}: expected {bounds}, got {version}")
    for name in _IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:
            fine = False
            text = f"{name} cannot be imported: {type(error).__name__}: {sentence(error)}"
            yield Finding(BROKEN, "packages", text)
    if fine:
        yield Finding(OK, "packages", ", ".join(found))


def _split(requirement: str) -> tuple[str, str]:
    """Splits ``"jax>=0.10; marker"`` into name and bounds."""
    name, bounds = re.match(r"([\w.-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)", requirement).groups()  # type: ignore[union-attr]
    return name, bounds.strip()


def _within(version: str, bounds: str) -> bool:
    """Tells whether a version lies within bounds such as ``>=0.12.8,<0.13``."""

    def numbers(text: str) -> list[int]:
        found = [int(n) for n in re.match(r"[\d.]*", text).group().split(".") if n]  # type: ignore[union-attr]
        return found + [0] * (6 - len(found))

    compare = {
        ">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b, "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b, ">": lambda a, b: a > b, "<": lambda a, b: a < b,
    }  # fmt: skip
    parts = re.findall(r"(>=|<=|==|!=|<|>)\s*([\w.]+)", bounds)
    return all(compare[sign](numbers(version), numbers(bound)) for sign, bound in parts)


def _extras() -> Iterator[Finding]:
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            text = f"{extra}: without {', '.join(missing)}; pip install 'jaxunlearn[{extra}]' "
            yield Finding(NOTE, "extras", f"{text}{_FOR[extra]}")
        else:
            yield Finding(OK, "extras", f"{extra}: {', '.join(modules)}")


def _devices() -> Iterator[Finding]:
    import jax
    import numpy as np

    a = np.arange(4096, dtype=np.float32).reshape(64, 64) % 7
    platforms = set()
    for device in jax.local_devices():
        platforms.add(device.platform)
        made = np.asarray(jax.jit(lambda x: x @ x.T)(jax.device_put(a, device)))
        limit = (device.memory_stats() or {}).get("bytes_limit")
        held = f", {_size(limit)} of memory" if limit else ""
        named = f"{device.platform} {device.id}: {device.device_kind}{held}"
        if np.allclose(made, a @ a.T, rtol=1e-2):
            yield Finding(OK, "devices", named)
        else:
            yield Finding(BROKEN, "devices", f"{named}: expected a @ a.T, got other numbers")
    if platforms == {"cpu"} and shutil.which("nvidia-smi"):
        text = "nvidia-smi is here, and jax sees the CPU alone: pip install 'jax[cuda13]'"
        yield Finding(NOTE, "devices", text)


def _cache() -> Iterator[Finding]:
    from jaxunlearn.data.dataset import cache_root

    root = cache_root(None)
    programs = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or root / "compiled")
    if not _writable(root):
        text = f"{root} cannot be written: data are decoded, and programs compiled, every time"
        yield Finding(NOTE, "cache", text)
        return
    sets = {path.parent.name.rpartition("-")[0] for path in root.glob("*/meta.json")}
    kept = [path for path in programs.glob("*") if path.is_file()] if programs.is_dir() else []
    held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    text = f"{root}: {_size(held)}, {len(kept)} files of compiled programs"
    if sets:
        text += f", decoded data of {', '.join(sorted(sets))}"
    yield Finding(OK, "cache", text)


def _data(given: str | None) -> Iterator[Finding]:
    from jaxunlearn.config import DataConfig
    from jaxunlearn.data.sources import load_dataset
    from jaxunlearn.data.sources.tfds import check_folder, find_folder

    digits = load_dataset(DataConfig())
    yield Finding(OK, "data", f"digits: {len(digits.train_x)} + {len(digits.test_x)}, embedded")
    root = Path(
        os.path.expanduser(given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    )
    if not root.is_dir():
        state = NOTE if given is None else BROKEN
        yield Finding(state, "data", f"no folder {root}: TFDS downloads, or data.dir=DIR names one")
        return
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    readable = []
    for name in found:
        try:
            folder = find_folder(DataConfig(name=name, dir=str(root)))
            check_folder(folder)
            readable.append(f"{name} {folder.name}")
        except DataError as error:
            # a folder that was named is meant to be read
            yield Finding(NOTE if given is None else BROKEN, "data", sentence(error))
    text = f"{root}: {', '.join(readable) or 'no data set that can be read'}"
    yield Finding(OK if readable else NOTE, "data", text)


def _runs(runs: Path) -> Iterator[Finding]:
    from jaxunlearn.core.files import is_held

    if not _writable(runs):
        yield Finding(BROKEN, "runs", f"{runs}: expected a folder that can be written")
        return
    free = shutil.disk_usage(_existing(runs)).free
    folders = sorted(path.parent for path in runs.glob("*/config.json"))
    working = [path.name for path in folders if is_held(path / "run.lock")]
    finished = [path.name for path in folders if (path / "report.json").is_file()]
    begun = [path.name for path in folders if path.name not in (*working, *finished)]
    parts = {"finished": finished, "under way": working, "begun": begun}
    told = "; ".join(f"{name}: {', '.join(names)}" for name, names in parts.items() if names)
    yield Finding(OK, "runs", f"{runs}: {_size(free)} free{'; ' if told else ''}{told}")


def _rows() -> Iterator[Finding]:
    """Loads rows of other packages, each of which may be broken."""
    from jaxunlearn.data.sources import SOURCES
    from jaxunlearn.kinds import KINDS
    from jaxunlearn.methods import METHODS
    from jaxunlearn.metrics import METRICS
    from jaxunlearn.models import NETWORKS
    from jaxunlearn.pictures import PICTURES

    for registry in (METHODS, METRICS, KINDS, NETWORKS, SOURCES, PICTURES):
        group = f"jaxunlearn.{registry.noun}"
        for name in importlib.metadata.entry_points(group=group).names:
            try:
                registry[name]
                yield Finding(OK, "rows", f"{registry.noun}.{name}, of another package")
            except Exception as error:
                yield Finding(BROKEN, "rows", sentence(error))


def _writable(folder: Path) -> bool:
    there = _existing(folder)
    return there.is_dir() and os.access(there, os.W_OK)


def _existing(folder: Path) -> Path:
    """Returns the folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _size(count: float) -> str:
    steps = min(int(math.log10(count)) // 3, 4) if count >= 1 else 0
    return f"{count / 1000**steps:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[steps]}"


def summary(findings: list[Finding]) -> str:
    """Returns one line on what is broken; nothing where all is well."""
    broken = [f"{one.subject}: {one.text}" for one in findings if one.state == BROKEN]
    if not broken:
        return ""
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return f"{broken[0]}{more}"


def colour(state: str) -> str:
    """Returns how a terminal shows a state."""
    return {OK: "green", NOTE: "yellow", BROKEN: "bold red"}[state]
