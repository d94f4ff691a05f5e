"""Configuration files and ``key=value`` overrides, checked before any work starts."""

import ast
import dataclasses
import importlib.util
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.config import DEFAULT_METHODS, SECTIONS, Config, DataConfig, ModelConfig, section
from jaxunlearn.core.errors import ConfigError, did_you_mean

RENAMED = {"oracles": "retrained", "rules": "sharding_rules"}
"""Keys of version 0.1 and what they are called now."""


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
        f"config: expected a file or one of {', '.join(known)}, got {name!r}"
        f"{did_you_mean(stem, known)}"
    )


def load_config(name: str | None, overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration of a file's ``get_config()``, with overrides.

    Args:
      name: a path, the name of a file that comes with the library, or ``None`` for
        the embedded experiment.
      overrides: ``"dotted.key=value"``.
    """
    config = Config() if name is None else _get_config(find_config(name))
    return apply_overrides(config, overrides)


def _get_config(path: Path) -> Config:
    spec = importlib.util.spec_from_file_location(f"_jaxunlearn_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config: expected a Python file, got {path}")
    module, source = sys.modules.get(spec.name), (path.resolve(), path.read_bytes())
    # as an import is: what a file registers is registered once
    if module is None or getattr(module, "_source", None) != source:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except (SyntaxError, ImportError, AttributeError, NameError, TypeError) as error:
            raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
        vars(module)["_source"] = source
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path}: expected a function get_config(), found none")
    try:
        config = module.get_config()
    except TypeError as error:  # a field that there is no longer, say
        raise ConfigError(f"{path}: get_config(): {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: expected get_config() to return a Config, got {type(config)}")
    return config


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Changes a configuration by ``dotted.key=value``.

    A value is read as a Python literal, else as text. Tuples may be written without
    brackets (``request.classes=3,5``). ``gan.r1=0.5`` sets a field of the section of a kind.
    ``methods=a,b`` selects these methods, keeping the options of those already there;
    ``methods.a.steps=10`` sets one option, and adds the method where it is not there. Where
    no methods are chosen, those of the embedded experiment are there for the digits, and none
    for other data. ``request.each=true`` takes all classes where ``request.classes`` is not
    given beside it.

    Raises:
      ConfigError: unknown key (with the valid ones) or a value of the wrong kind.
    """
    before, keys = config, {text.partition("=")[0] for text in overrides}
    # methods last, since the ones that are there depend on the data
    for text in sorted(overrides, key=lambda text: text.startswith("methods")):
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"override: expected key=value, got {text!r}")
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
        inner = _set(node.get(name, {}), rest, text, key) if rest else _literal(text)
        return {**node, name: inner}
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

    Raises:
      ConfigError: "train.epochs: expected float, got 'many'".
    """
    for name, kind in typing.get_type_hints(type(node)).items():
        value, key = getattr(node, name), f"{prefix}{name}"
        if dataclasses.is_dataclass(value):
            check_types(value, f"{key}.")
            continue
        check_value(key, value, kind)
        if name == "seed" and value < 0:
            raise ConfigError(f"{key}: expected a number >= 0, got {value}")
    if isinstance(node, Config):
        for name in node.kinds:
            own = section(node, name)
            if not isinstance(own, SECTIONS[name]):
                raise ConfigError(f"kinds.{name}: expected {SECTIONS[name].__name__}, got {own!r}")
            check_types(own, f"{name}.")


def check_value(key: str, value: Any, kind: Any) -> None:
    """Checks one value against an annotation; :class:`ConfigError` names the key."""
    if not _fits(value, kind):
        raise ConfigError(f"{key}: expected {_shown(kind)}, got {value!r}")


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


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(text: str, kind: Any, key: str) -> Any:
    value = _literal(text)
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options and value in (None, "None", "none", ""):
        return None
    wanted = next(option for option in options if option is not type(None))
    if wanted is str:
        return text
    if wanted is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if typing.get_origin(wanted) is tuple:
        items = value if isinstance(value, tuple | list) else (value,) if text else ()
        if typing.get_args(wanted)[0] is not int or all(type(item) is int for item in items):
            return tuple(items)
    shown = getattr(wanted, "__name__", str(wanted))
    shown = "whole numbers such as 3,5" if typing.get_origin(wanted) is tuple else shown
    shown = "true or false" if wanted is bool else shown
    raise ConfigError(f"{key}: expected {shown}, got {text!r}")
