"""Configuration files and ``key=value`` overrides, checked before any work starts."""

import ast
import contextlib
import dataclasses
import importlib.util
import json
import math
import numbers
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import config as sections
from jaxunlearn.config import (
    DEFAULT_METHODS,
    SECTIONS,
    BenchConfig,
    Config,
    DataConfig,
    ModelConfig,
    section,
)
from jaxunlearn.core.errors import ConfigError, brief, did_you_mean, sentence

RENAMED = {"oracles": "retrained", "rules": "sharding_rules"}
"""Keys of version 0.1 and what they are called now."""

DEEPEST, LONGEST_KEY = 20, 200
"""Brackets within brackets, and keys of as many characters, are meant for something else."""
MOST_FLOAT, MOST_INT = 3.4e38, 2**31 - 1
"""The largest numbers in float32 and int32, in which everything is computed."""


def list_configs() -> dict[str, Path]:
    """Finds the configuration files that come with the library, by name."""
    package = Path(__file__).parent.parent
    # a wheel carries the folder inside the package, a checkout beside it
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.py"))}
    return {}


def find_config(name: str) -> Path:
    """Finds the file of a path, or of a name that comes with the library."""
    known = list_configs()
    if Path(name).is_file():
        return Path(name)
    # "configs/mnist_neuron_path.py" works outside a checkout, too
    stem = Path(name).stem
    if stem in known and name in (stem, f"configs/{stem}.py"):
        return known[stem]
    raise ConfigError(
        f"config: expected a file or one of {', '.join(known)}, got {brief(name)}"
        f"{did_you_mean(stem, known)}"
    )


def load_preset(name: str) -> Mapping[str, Any]:
    """Returns tuned options by method and kind of request, as ``jaxunlearn bench --tune`` wrote.

    Args:
      name: a path, or the name of a preset that comes with the library.
    """
    folder = next(iter(list_configs().values())).parent / "presets"
    known = {path.stem: path for path in sorted(folder.glob("*.json"))}
    path = Path(name) if Path(name).is_file() else known.get(name)
    if path is None:
        raise ConfigError(
            f"preset: expected a file or one of {', '.join(known)}, got {brief(name)}"
            f"{did_you_mean(name, known)}"
        )
    try:
        methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
        sound = all(isinstance(one["options"], dict) for one in methods.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise ConfigError(f"preset: expected a file that bench --tune wrote, got {path}")
    return dict(methods)


def load_config(name: str | None, overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration of a file's ``get_config()``, with overrides.

    Args:
      name: a path, the name of a file that comes with the library, or ``None`` for
        the embedded experiment.
      overrides: ``"dotted.key=value"``.
    """
    config = Config() if name is None else _get_config(find_config(name), Config)
    return apply_overrides(config, overrides)


def load_bench(name: str, overrides: Sequence[str] = ()) -> BenchConfig:
    """Returns the bench of a file's ``get_config()``, with overrides.

    ``requests=class,random`` and ``methods=a,b`` select; ``share``, ``spared``, ``preset``,
    ``draws`` and ``tuning_seed`` are fields of :class:`BenchConfig`, all other keys those of a run.

    Args:
      name, overrides: see :func:`load_config`.
    """
    bench = _get_config(find_config(name), BenchConfig)
    own = {one.name for one in dataclasses.fields(bench)} - {"base"}
    rest = []
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "requests":
            asked = [part.strip() for part in value.split(",") if part.strip()]
            if strange := [one for one in asked if one not in bench.requests]:
                raise ConfigError(
                    f"requests: expected some of {', '.join(bench.requests)}, got "
                    f"{brief(strange[0])}"
                )
            bench = dataclasses.replace(bench, requests={n: bench.requests[n] for n in asked})
        elif key in own:
            bench = _set(bench, [key], value, key)
        else:
            rest.append(text)
        if key == "methods":  # else only options of one
            bench = dataclasses.replace(bench, every=False)
    return dataclasses.replace(bench, base=apply_overrides(bench.base, rest))


def _get_config(path: Path, kind: type) -> Any:
    spec = importlib.util.spec_from_file_location(f"_jaxunlearn_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config: expected a Python file, got {path}")
    module, source = sys.modules.get(spec.name), (path.resolve(), path.read_bytes())
    # as an import is: what a file registers is registered once
    if module is None or getattr(module, "_source", None) != source:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        # as Python does with a script's: its own modules stand beside it, some imported later
        folder = str(path.resolve().parent)
        if folder not in sys.path and path not in list_configs().values():
            sys.path.insert(0, folder)
        with _named(path):
            spec.loader.exec_module(module)
        vars(module)["_source"] = source
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path}: expected a function get_config(), found none")
    with _named(path):
        config = module.get_config()
    if not isinstance(config, kind):
        other = isinstance(config, Config | BenchConfig)
        command = "bench" if isinstance(config, BenchConfig) else "run"
        raise ConfigError(
            f"{path}: expected get_config() to return a {kind.__name__}, got "
            f"{type(config).__name__}" + (f"; it is one of jaxunlearn {command}" if other else "")
        )
    return config


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names file and line of whatever a user's file raises."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if _is(f, path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines = [error.lineno]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        text = error.msg if isinstance(error, SyntaxError) else sentence(error)
        raise ConfigError(f"{where}: {type(error).__name__}: {text}{_place_of(error)}") from error


def _is(frame: traceback.FrameSummary, path: Path) -> bool:
    return Path(frame.filename) == path


def _place_of(error: BaseException) -> str:
    """Returns which dataclass of the configuration has a field that another has not."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not found or not isinstance(error, TypeError):
        return ""
    name = found[1]
    owners = [
        one.__name__
        for one in vars(sections).values()
        if isinstance(one, type) and dataclasses.is_dataclass(one)
        and name in (field.name for field in dataclasses.fields(one))
    ]  # fmt: skip
    if owners:
        return f"; it is a field of {' and '.join(owners)}"
    return f"; it is now {RENAMED[name]!r}" if name in RENAMED else ""


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Changes a configuration by ``dotted.key=value``.

    A value is read as a Python literal, else as text. Tuples may be written without brackets
    (``request.classes=3,5``, or names of classes); ``request.indices=@forget.npy`` reads
    positions or a mask from a file (``.npy``, ``.txt``, ``.csv``), ``request.words=Basil,Baku``
    takes words. ``gan.r1=0.5`` sets a field of
    the section of a kind. ``methods=a,b`` selects these methods, keeping the options of those
    already there; ``methods.a.steps=10`` sets one option, and adds the method where it is not
    there. Where no methods are chosen, those of the embedded experiment are there for the digits,
    and none for other data. ``request.each=true`` takes all classes where ``request.classes`` is
    not given beside it.

    Raises:
      ConfigError: unknown key (with the valid ones) or a value of the wrong kind.
    """
    before, keys = config, {text.partition("=")[0] for text in overrides}
    # methods last, since the ones that are there depend on the data
    for text in sorted(overrides, key=lambda text: text.startswith("methods")):
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"override: expected key=value, got {brief(text)}")
        if len(key) > LONGEST_KEY:
            raise ConfigError(
                f"override: expected a key of at most {LONGEST_KEY} characters, got {brief(key)}"
            )
        name, *rest = key.split(".")
        if name == "methods":
            config = _set_methods(config, rest, value, key)
        else:
            config = _set(config, [name, *rest], value, key)
    if config.request.each and not before.request.each and "request.classes" not in keys:
        # what the file forgets is one request, no choice of classes for many
        request = dataclasses.replace(config.request, classes=())
        config = dataclasses.replace(config, request=request)
    return config


def _set_methods(config: Config, path: list[str], text: str, key: str) -> Config:
    embedded = config.data.name == DataConfig().name
    if path:  # one option; the defaults are tuned for one network, and for requests by class
        by_class = bool(config.request.classes) or config.request.each
        embedded = embedded and by_class and config.model.name == ModelConfig().name
    known = config.methods or (DEFAULT_METHODS if embedded else {})
    if path:
        return dataclasses.replace(config, methods=_set(known, path, text, key))
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise ConfigError("methods: expected at least one, got none")
    return dataclasses.replace(config, methods={name: known.get(name, {}) for name in names})


def _set(node: Any, path: list[str], text: str, key: str) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(node, Mapping):
        if rest:
            return {**node, name: _set(node.get(name, {}), rest, text, key)}
        # as of a field that is true or false: as a text it would be true whatever it says
        truth = {"true": True, "false": False}.get(text.lower())
        return {**node, name: _literal(text, key) if truth is None else truth}
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        raise ConfigError(f"{key}: expected a value here, got the further key {name!r}")
    hints = typing.get_type_hints(type(node))
    known, whole = list(hints), node if isinstance(node, Config) else None
    if whole:
        # sections are written as if they were fields; "kinds.gan.r1", as in a file, does too
        known = [*(field for field in hints if field != "kinds"), *SECTIONS]
        name, rest = (rest[0], rest[1:]) if name == "kinds" and rest else (name, rest)
    if name not in known:
        hint = f"; it is now {RENAMED[name]!r}" if name in RENAMED else did_you_mean(name, known)
        raise ConfigError(f"{key}: expected one of {', '.join(known)}, got {name!r}{hint}")
    current = section(whole, name) if whole and name in SECTIONS else getattr(node, name)
    if rest:
        value = _set(current, rest, text, key)
    elif dataclasses.is_dataclass(current):
        raise ConfigError(
            f"{key}: expected a key below it, one of "
            f"{', '.join(f'{key}.{field.name}' for field in dataclasses.fields(current))}"
        )
    else:
        value = _convert(text, hints[name], key)
    if whole and name in SECTIONS:
        return dataclasses.replace(whole, kinds={**whole.kinds, name: value})
    return dataclasses.replace(node, **{name: value})


def check_types(node: Any, prefix: str = "") -> None:
    """Checks every field of a configuration dataclass, sections included, by its annotation.

    And its bounds, see :func:`jaxunlearn.config.bounded`.

    Raises:
      ConfigError: "train.epochs: expected float, got 'many'".
    """
    hints = typing.get_type_hints(type(node))
    for one in dataclasses.fields(node):
        value, key = getattr(node, one.name), f"{prefix}{one.name}"
        if dataclasses.is_dataclass(value):
            check_types(value, f"{key}.")
            continue
        if key == "methods" and isinstance(node, Config) and isinstance(value, Mapping):
            _check_methods(value)
        _check_kind(key, value, hints[one.name])
    check_bounds(node, prefix)
    for one in dataclasses.fields(node):
        _check_plain(f"{prefix}{one.name}", getattr(node, one.name), DEEPEST)
    if isinstance(node, Config):
        for name in node.kinds:
            own = section(node, name)
            if not isinstance(own, SECTIONS[name]):
                raise ConfigError(f"kinds.{name}: expected {SECTIONS[name].__name__}, got {own!r}")
            check_types(own, f"{name}.")


def _check_methods(methods: Mapping[str, Any]) -> None:
    for label, options in methods.items():
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"methods.{label}: expected options, such as methods.{label}.steps=10, "
                f"got {brief(options)}"
            )


def check_bounds(node: Any, prefix: str = "") -> None:
    """Checks the numbers of a dataclass by the bounds of their fields; types are not looked at.

    Raises:
      ConfigError: "train.epochs: expected a positive number, got 0".
    """
    for one in dataclasses.fields(node):
        value, key = getattr(node, one.name), f"{prefix}{one.name}"
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{key}.")
        if one.metadata.get("most") is None or value is None:
            continue
        for number in value if isinstance(value, tuple | list) else (value,):
            _check_number(key, number, **one.metadata)


def _check_number(key: str, value: Any, *, least: float, above: float, most: float) -> None:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real:
        raise ConfigError(f"{key}: expected a number, got {brief(value)}")
    finite = least <= value < math.inf and value > above
    if finite and value <= most:
        return
    if 0 < 1 - most < 1e-6:
        wanted = f"a number from {least:g} to below 1"
    elif finite:
        wanted = f"at most {most:,.0f}"
    elif above == 0:
        wanted = "a positive number"
    else:
        wanted = f"at least {least:g}" if least > 0 else f"a number >= {least:g}"
    raise ConfigError(f"{key}: expected {wanted}, got {brief(value)}")


def check_value(key: str, value: Any, kind: Any) -> None:
    """Checks one value against an annotation; :class:`ConfigError` names the key.

    Whatever the annotation, it has to be plain, as JSON is, and numbers those of 32 bits.
    """
    _check_kind(key, value, kind)
    _check_plain(key, value, DEEPEST)


def _check_kind(key: str, value: Any, kind: Any) -> None:
    if not _fits(value, kind):
        raise ConfigError(f"{key}: expected {_shown(kind)}, got {brief(value)}")


def _check_plain(key: str, value: Any, deep: int) -> None:
    if deep == 0:
        raise ConfigError(f"{brief(key)}: expected at most {DEEPEST} levels of brackets, got more")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ConfigError(f"{key}: expected names that are text, got {brief(name)}")
            _check_plain(f"{key}.{name}", inner, deep - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(key, inner, deep - 1)
    elif isinstance(value, float):
        if not abs(value) <= MOST_FLOAT:
            raise ConfigError(
                f"{key}: expected a number of at most {MOST_FLOAT:g} in size, got {value!r}"
            )
    elif isinstance(value, int) and not isinstance(value, bool):
        # seeds have bounds of their own
        if abs(value) > MOST_INT and key.rpartition(".")[2] != "seed":
            raise ConfigError(
                f"{key}: expected a whole number of at most {MOST_INT:,} in size, "
                f"got {brief(value)}"
            )
    elif not (value is None or isinstance(value, str | bool) or dataclasses.is_dataclass(value)):
        raise ConfigError(
            f"{key}: expected numbers, texts, lists and mappings, got {type(value).__name__}"
        )


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(kind))
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        kinds = (
            inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, tuple) else inner
        )
        return (
            isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
        )
    if origin is not None:  # a mapping of names
        return isinstance(value, Mapping) and all(
            isinstance(name, str) and _fits(item, inner[1]) for name, item in value.items()
        )
    if kind is Any:
        return True
    if kind is float:
        kind = int | float
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _shown(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    return text.replace("collections.abc.", "").replace("typing.", "")


def _literal(text: str, key: str) -> Any:
    level = 0
    for character in text:
        level += (character in "([{") - (character in ")]}")
        if level > DEEPEST:
            raise ConfigError(f"{key}: expected at most {DEEPEST} levels of brackets, got more")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
    except (RecursionError, MemoryError):  # a thousand signs before a number, say
        raise ConfigError(f"{key}: expected a value that can be read, got {brief(text)}") from None


def _convert(text: str, kind: Any, key: str) -> Any:
    value = _literal(text, key)
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options and value in (None, "None", "none", ""):
        return None
    wanted = next(option for option in options if option is not type(None))
    if wanted is str:
        return text
    if typing.get_origin(wanted) is Mapping and isinstance(value, Mapping):
        return value
    if wanted is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if typing.get_origin(wanted) is tuple:
        if text.startswith("@") and typing.get_args(wanted)[0] is int:
            from jaxunlearn.core.files import read_places

            return read_places(text[1:], key)
        named = typing.get_args(wanted)[0] == int | str
        if typing.get_args(wanted)[0] is str and not isinstance(value, tuple | list):
            # words, numbers among them too; in quotation marks with commas of their own
            quoted = isinstance(value, str) and value != text
            return (value,) if quoted else tuple(filter(None, map(str.strip, text.split(","))))
        if named and isinstance(value, str) and value == text:  # names, with or without numbers
            value = tuple(_literal(part.strip(), key) for part in text.split(",") if part.strip())
        items = value if isinstance(value, tuple | list) else (value,) if text else ()
        allowed = (int, str) if named else (int,)
        whole = named or typing.get_args(wanted)[0] is int
        if not whole or all(type(item) in allowed for item in items):
            return tuple(items)
    shown = getattr(wanted, "__name__", str(wanted))
    shown = "whole numbers such as 3,5" if typing.get_origin(wanted) is tuple else shown
    shown += " or class names" if typing.get_args(wanted)[:1] == (int | str,) else ""
    shown = "true or false" if wanted is bool else shown
    raise ConfigError(f"{key}: expected {shown}, got {brief(text)}")
