"""What happens to what makes no sense? 2,000 cases at every door, drawn from a seed.

    python benchmarks/fuzz.py                    # 2,000 cases, a few minutes
    python benchmarks/fuzz.py --cases 200 --seed 7 --json

Kinds of cases: ``settings`` (overrides of the embedded experiment, up to the plan of a run),
``configs`` (configuration files), ``commands`` (the command line), ``requests`` and ``arrays``
(Python, and the same arrays in ``.npz`` files), ``files`` (data sets, reports) and
``checkpoints`` (damaged ones). Each case knows what it means, by rules that are written down
here a second time, or that it means nothing. Nothing is trained.

What may come of a case: it is *refused*, by an error of this library in one line; or it is
*taken*, and what was understood is what was meant. Anything else is a fault, printed with its
case: ``library`` (an exception from inside a library, or of several lines), ``hang`` (longer
than ``--limit`` seconds), ``nonsense`` (taken, but it means nothing, or something else) and
``needless`` (refused, though it means something).
"""

import argparse
import ast
import contextlib
import io
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxunlearn as ju
from jaxunlearn import checkpoint, report
from jaxunlearn.cli import main as command
from jaxunlearn.config import DataConfig
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import UserError, brief
from jaxunlearn.data.requests import forget_class, forget_classes, forget_indices, forget_random
from jaxunlearn.data.sources import load_dataset
from jaxunlearn.experiment.plan import make_plan

HOME = Path(ju.__file__).parent
BASE = ("model.options.features=(8,)", "methods=finetune", "methods.finetune.steps=2")
ANY, NOTHING = object(), object()
"""What a case means: whatever its value says; nothing, so that it has to be refused."""


class Case(NamedTuple):
    """A case: what is given, in words; what does it, in a folder of its own; what it means.

    ``meaning`` is compared with what ``act`` returns; ``ANY`` is never compared.
    """

    kind: str
    text: str
    act: Callable[[Path], Any]
    meaning: Any


class Hang(BaseException):
    """A case took too long."""


# settings

WORDS = (
    "0", "1", "2", "3", "7", "-1", "3.5", "0.5", "1e-3", "1e300", "1e400", "-1e400", "nan", "inf",
    "1" + "0" * 20, "-" + "1" + "0" * 20, "4294967295", "4294967296", "2147483648", "3000000000",
    "True", "None", "none", "'x'", "x", "", "[]", "{}", "()", "(1,2)", "(1,2.5)", "3,5", "0x10",
    "1_000", "\uff11\uff12", " 3 ", "-0.0", "1e-400", "1j", "b'x'", "...", "lambda: 0",
    "__import__('os')", "9" * 5000, "(" * 3000 + ")" * 3000, "[" * 3000, "-" * 5000 + "1",
    "{'a': {'b': {'c': 1}}}", "{1: 2}", "\x1b[2J", "..", "a/b", "\u202ea", "\U0001f4a5", "@x",
    "(True,)", "('a',)", "x" * 10_000, "\0", "1\n2", "{'bogus': 1}", "{'loss': 0.1}",
)  # fmt: skip


def literal(text: str) -> Any:
    """Returns what Python reads a text as, or the text."""
    if max(map(text.count, "([{-")) > 100:
        return NOTHING
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def number(low: float, high: float, *, whole: bool = False, none: bool = False) -> Any:
    """Makes the rule of a number from ``low`` to ``high``."""

    def rule(text: str) -> Any:
        value = literal(text)
        if none and (value is None or text in ("none", "")):
            return None
        kinds = (int,) if whole else (int, float)
        fits = type(value) in kinds and low <= value <= high
        return value if fits else NOTHING

    return rule


def word(*known: str) -> Callable[[str], Any]:
    """Makes the rule of a word."""
    return lambda text: text if text in known else NOTHING


def folder_name(text: str) -> Any:
    plain = text.isprintable() and 0 < len(text.encode(errors="replace")) <= 200
    fits = plain and "/" not in text and text not in (".", "..") and "\u202e" not in text
    return text if fits else NOTHING


def widths(text: str) -> Any:
    value = literal(text)
    if not isinstance(value, tuple | list):
        return NOTHING
    whole = all(type(one) is int and 0 < one < 10_000 for one in value)
    return tuple(value) if whole else NOTHING


def classes(text: str) -> Any:
    value = literal(text)
    value = value if isinstance(value, tuple | list) else (value,)
    if all(isinstance(one, str) for one in value):  # names of classes, which are digits here
        return ANY if all(one in "0123456789" and one for one in value) and value else NOTHING
    whole = all(type(one) is int and 0 <= one < 10 for one in value)
    return tuple(value) if whole and len(set(value)) == len(value) > 0 else NOTHING


def limits(text: str) -> Any:
    value = literal(text)
    fits = isinstance(value, dict) and set(value) <= {"loss", "accuracy"}
    numbers = fits and all(type(one) in (int, float) for one in value.values())
    return value if numbers else NOTHING


TINY = math.ulp(0.0)
SETTINGS: dict[str, Callable[[str], Any]] = {
    "seed": number(0, 2**32 - 1, whole=True),
    "seeds": number(1, 10_000, whole=True),
    "retrained": number(1, 10_000, whole=True),
    "at_a_time": number(1, 1_000_000, whole=True, none=True),
    "name": folder_name,
    "train.epochs": number(TINY, 1e6),
    "train.batch_size": number(1, 1_000_000, whole=True),
    "train.learning_rate": number(TINY, 3.4e38),
    "train.weight_decay": number(0, 3.4e38),
    "train.momentum": number(0, 1 - 1e-9),
    "train.optimizer": word("sgd", "adam", "adamw"),
    "train.schedule": word("constant", "cosine"),
    "train.augment": word("none", "crop_flip"),
    "data.seed": number(0, 2**32 - 1, whole=True),
    "model.name": word("mlp"),
    "model.options.features": widths,
    "request.classes": classes,
    "methods.finetune.steps": number(1, 2**31 - 1, whole=True),
    "methods.finetune.batch_size": number(1, 2**31 - 1, whole=True),
    "methods.finetune.chunk": number(1, 2**31 - 1, whole=True),
    "methods.finetune.stop": limits,
    "gan.r1": number(0, 3.4e38),
    "gan.ema": number(0, 1 - 1e-9),
    "gan.samples": number(1, 10_000_000, whole=True),
}
WRONG_KEYS = (
    "sed", "train", "train.epoch", "seed.x", "train.epochs.x", "methods.finetune.rate", "", ".",
    "train..epochs", "__class__", "train.__dict__", "kinds", "kinds.gam.r1", "gan", "methods.",
    "a." * 300 + "b", "methods.finetune." + "a." * 50 + "b", "request", "\x1b[2J", "oracles",
)  # fmt: skip


def planned(words: tuple[str, ...], data: Any, key: str) -> Callable[[Path], Any]:
    """Makes what plans a run and returns the setting of a key, as the plan has it."""

    def act(folder: Path) -> Any:
        config: Any = make_plan(load_config(None, [*BASE, *words]), folder, data).config
        for part in key.split("."):
            if part == "gan":
                config = ju.config.section(config, "gan")
            else:
                config = config[part] if isinstance(config, dict) else getattr(config, part)
        return tuple(config) if isinstance(config, list) else config

    return act


def settings(draw: random.Random, data: Any) -> Case:
    if draw.random() < 0.1:
        key, value = draw.choice(WRONG_KEYS), draw.choice(WORDS)
        return Case("settings", f"{key}={value}", planned((f"{key}={value}",), data, ""), NOTHING)
    key = draw.choice(list(SETTINGS))
    sane = draw.choice((str(draw.randint(1, 9)), f"{draw.random():.3f}", "(3,4)", "{'loss': 0.1}"))
    value = draw.choice((draw.choice(WORDS), sane, str(draw.randint(-(10**12), 10**12))))
    return Case(
        "settings", f"{key}={value}", planned((f"{key}={value}",), data, key),
        SETTINGS[key](value),
    )  # fmt: skip


# configuration files

FIELDS = ("epochs", "seed", "sedes", "retrained", "batch_size", "x", "oracles", "name", "classes")
VALUES = ("3", "-1", "'x'", "None", "1e300", "float('nan')", "[]", "{}", "object()", "print", "()")
FILES = (
    "def get_config(:\n    return 1\n",
    "x = 1\n",
    "get_config = 3\n",
    "def get_config():\n    return {value}\n",
    "def get_config(a):\n    return a\n",
    "def get_config():\n    raise {error}('it\\nfails')\n",
    "raise {error}('early')\n",
    "import nothing_of_this_name\n",
    "from jaxunlearn.config import {name}\n",
    "def get_config():\n    return get_config()\n",
    "\0",
    "\tx = 1\n  y = 2\n",
    "# coding: nothing\n",
    "{import_}def get_config():\n    return Config({name}={value}, nonsense=1)\n",
    "{import_}def get_config():\n    train = TrainConfig({name}={value}, nonsense=1)\n"
    "    return Config(train=train)\n",
    "{import_}def get_config():\n    return Config(train={value})\n",
    "{import_}def get_config():\n    model = ModelConfig(options={{'features': {value}}})\n"
    "    return Config(model=model)\n",
    "{import_}def get_config():\n    return Config(methods={{'finetune': {value}}})\n",
    "{import_}def get_config():\n    return Config(methods={{3: {{}}}})\n",
    "{import_}def get_config():\n    deep = []\n    for _ in range(9999):\n        deep = [deep]\n"
    "    return Config(methods={{'finetune': {{'x': deep}}}})\n",
    "{import_}def get_config():\n    return Config(seed=2**32)\n",
    "{import_}def get_config():\n    return Config(seed=10**400)\n",
    "{import_}def get_config():\n    return Config(request=Request(classes=({value},)))\n",
    "{import_}def get_config():\n    return Config(kinds={value}, seed=-1)\n",
    "{import_}def get_config():\n    import sys\n    sys.exit({value})\n",
)  # fmt: skip
ERRORS = ("ValueError", "KeyError", "RuntimeError", "OSError", "RecursionError", "SystemExit")
IMPORT = "from jaxunlearn.config import *\nfrom jaxunlearn.config import Config, ModelConfig\n"


def configs(draw: random.Random, data: Any) -> Case:
    name, value = draw.choice(FIELDS), draw.choice(VALUES)
    text = draw.choice(FILES)
    if (
        "Config" in text
        and "{import_}" in text
        and "nonsense" not in text
        and value in ("3", "()", "[]", "{}")
    ):
        value = "object()"  # some of these mean something
    if value in ("{}", "None") and ("'finetune': {value}" in text or "exit" in text):
        value = "-1"
    error = draw.choice(ERRORS)
    text = text.format(name=name, value=value, import_=IMPORT, error=error) if "{" in text else text
    if "import Config\n" in text or f"import {name}" in text:
        text = "from jaxunlearn.config import nothing_of_this_name\n"

    def act(folder: Path) -> Any:
        (folder / "mine.py").write_text(text, encoding="utf-8")
        return make_plan(load_config(str(folder / "mine.py")), folder, data)

    return Case("configs", text, act, NOTHING)


# the command line


def commands(draw: random.Random, data: Any) -> Case:
    del data
    one = draw.choice(WORDS)
    given = draw.choice((
        ["run", f"train.epochs={draw.choice(('-1', 'x', '1e300', 'nan', '(' * 999))}"],
        ["run", f"seed={draw.choice(('-1', 'x', '1e300', '4294967296', '9' * 5000))}"],
        ["run", f"{draw.choice(WRONG_KEYS[:-1])}={one}"],
        ["run", f"nothing_{draw.randint(0, 9)}.py"],
        ["run", "a", "b"],
        ["run", f"data.name={draw.choice(('mnits', 'x.npz', '..', '', 'a b'))}", "data.dir=."],
        ["show", draw.choice(("", "..", "x" * 300, "nothing", "\x1b[2J", "\0"))],
        ["verify", draw.choice(("", "..", "x" * 300, "nothing", "\x1b[2J", "\0"))],
        ["list", draw.choice(("metric", "x", "\x1b[2J", ""))],
    ))  # fmt: skip

    def act(folder: Path) -> Any:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = command([*given, "--runs", str(folder)])
        text = err.getvalue()
        if status == 0:
            return status
        if "Traceback" in text or "--debug" in text or text.count("\n") != 1 or "\x1b" in text:
            raise AssertionError(text)
        raise UserError(text.strip())

    return Case("commands", " ".join(given), act, ANY if given == ["list", ""] else NOTHING)


# requests and arrays

LABELS = np.arange(24) % 4
IMAGES = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)


def mask_of(classes: Any) -> Any:
    """Returns who is forgotten, if these are classes."""
    try:
        several = isinstance(classes, set) or np.ndim(classes) > 0
        given = list(classes) if several else [classes]
        numbers = [int(one) for one in given]
        same = all(
            not isinstance(one, str | bytes) and one == whole
            for one, whole in zip(given, numbers, strict=True)
        )
    except Exception:
        return NOTHING
    sane = same and numbers and all(0 <= n < 4 for n in numbers) and len(set(numbers)) < 4
    return tuple(np.flatnonzero(np.isin(LABELS, numbers))) if sane else NOTHING


ODD = (
    3, 0, -1, 4, 10**20, 3.7, 3.0, math.nan, math.inf, True, None, "3", "cat", b"3", 2 + 0j, [],
    (1,), [1, 2], [1, 1], [1, 2.5], {1, 2}, {"a": 1}, np.int8(2), np.uint64(2**63), np.float32(1.5),
    np.array(2), np.array([1, 2]), np.array([1.0, 2.5]), np.array([[1], [2]]), np.array([]),
    np.array(["1"]), np.array([None]), np.zeros(24, bool), np.ones(24, bool), LABELS == 1,
    LABELS[:5] == 1, range(2), iter([1]), object(), print, 2**31, -(2**63), np.datetime64("2020"),
)  # fmt: skip


def requests(draw: random.Random, data: Any) -> Case:
    del data
    number, value = draw.choice(list(enumerate(ODD)))
    value = iter([1]) if number == 37 else value
    how = draw.choice((forget_class, forget_classes, forget_indices, forget_random))
    meaning = ANY
    if how in (forget_class, forget_classes) and not hasattr(value, "__next__"):
        # a whole number in a float, say, may be refused as well: if taken, it is that number
        meaning = mask_of(value)

    def act(folder: Path) -> Any:
        del folder
        return taken(ju.make_sets(IMAGES, LABELS, how(value)))

    return Case("requests", f"{how.__name__}({brief(value)})", act, meaning)


def taken(sets: Any) -> tuple[int, ...]:
    """Returns which of the examples are to be forgotten."""
    return tuple(sorted(np.asarray(sets.forget.indices)[: int(sets.forget.size)].tolist()))


def odd_arrays(draw: random.Random) -> tuple[str, Any, Any, bool]:
    """Draws examples and labels: what is odd about them, and whether they mean something."""
    x, y = IMAGES.copy(), LABELS.copy()
    cases: dict[str, tuple[Any, Any, bool]] = {
        "plain": (x, y, True),
        "float64": (x.astype(np.float64), y, True),
        "int64 labels": (x, y.astype(np.int64), True),
        "nan": (np.where(np.arange(24)[:, None] == draw.randrange(24), np.nan, x), y, False),
        "infinity": (np.where(np.arange(24)[:, None] == draw.randrange(24), np.inf, x), y, False),
        "fewer labels": (x, y[: draw.randrange(24)], False),
        "more labels": (x, np.tile(y, 2), False),
        "no examples": (x[:0], y[:0], False),
        "a number": (np.float32(1), y, False),
        "labels of two axes": (x, y[:, None], False),
        "one-hot labels": (x, np.eye(4)[y], False),
        "negative label": (x, np.where(np.arange(24) == draw.randrange(24), -1, y), False),
        "broken labels": (x, y + 0.5, False),
        "nan labels": (x, np.where(y == 0, np.nan, y), False),
        "labels of text": (x, y.astype(str), False),
        "labels of 2^40": (x, y.astype(np.int64) + 2**40, False),
        "labels of 2^32": (x, np.where(y == 3, 2**32, y), False),
        "objects": (np.array([object()] * 24), y, False),
        "text": (np.array(["a"] * 24), y, False),
        "complex": (x.astype(complex), y, False),
        "beyond float32": (x.astype(np.float64) * 1e300, y, False),
    }
    what = draw.choice(list(cases))
    return what, *cases[what]


def arrays(draw: random.Random, data: Any) -> Case:
    del data
    what, x, y, meant = odd_arrays(draw)
    if draw.random() < 0.5:

        def act(folder: Path) -> Any:
            del folder
            return len(taken(ju.make_sets(x, y, forget_class(1))))

        return Case("arrays", f"make_sets: {what}", act, 6 if meant else NOTHING)

    def read(folder: Path) -> Any:
        np.savez(folder / "a.npz", train_x=x, train_y=y, test_x=IMAGES, test_y=LABELS)
        return len(load_dataset(DataConfig(name=str(folder / "a.npz"))).train_x)

    return Case("arrays", f".npz: {what}", read, 24 if meant else NOTHING)


# files and checkpoints


def damage(draw: random.Random, content: bytes) -> bytes:
    """Changes, cuts, repeats or replaces some bytes."""
    at = draw.randrange(max(1, len(content)))
    return draw.choice((
        content[:at],
        content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :],
        content[:at] + content,
        content[at:],
        draw.randbytes(at),
        b"",
        b"[" * 99_999,
        b"\xff\xfe" + content,
    ))  # fmt: skip


INFOS = (
    "{}", '{"splits": 3}', '{"splits": ["x"]}', '{"fileFormat": "array_record", "splits": [{}]}',
    '{"fileFormat": "array_record", "splits": [{"name": "train"}, {"name": "test"}]}',
    '{"alternativeFileFormats": 3}',
    '{"fileFormat": "array_record", "splits": [{"name": "train", "shardLengths": ["x"]},'
    ' {"name": "test"}]}',
)  # fmt: skip
REPORTS: tuple[Any, ...] = (
    {"rows": 3}, {"rows": [3]}, {"rows": [{}]}, {"columns": 3}, {"notes": 3}, {"environment": 3},
    {"rows": [{"metric": "m", "values": {"original": "x"}, "format": ".3f"}]}, {"trials": 3},
    {"rows": [{"metric": "m", "values": {"original": 1.0}, "format": "{{"}]}, {"published": 3},
)  # fmt: skip
REPORT = {"title": "t", "columns": ["original"], "rows": [], "notes": [], "environment": {}}


def files(draw: random.Random, data: Any) -> Case:
    del data
    seed, which = draw.getrandbits(32), draw.choice(("npz", "report", "classes", "features"))

    def npz(folder: Path) -> Any:
        path = folder / "a.npz"
        np.savez(path, train_x=IMAGES, train_y=LABELS, test_x=IMAGES, test_y=LABELS)
        path.write_bytes(damage(random.Random(seed), path.read_bytes()))
        found = load_dataset(DataConfig(name=str(path)))
        return bool(np.array_equal(found.train_x, IMAGES))

    def saved(folder: Path) -> Any:
        own = random.Random(seed)
        text = json.dumps(REPORT | {"title": "\x1b[2J"}).encode()
        text = damage(own, text) if own.random() < 0.5 else json.dumps(
            REPORT | own.choice(REPORTS)
        ).encode()  # fmt: skip
        (folder / "report.json").write_bytes(text)
        shown = report.to_markdown(report.load(folder))
        return "\x1b" not in shown

    def of_tfds(folder: Path) -> Any:
        own = folder / "own" / "1.0.0"
        own.mkdir(parents=True)
        names = ("os.path.X", "x", "", "tensorflow_datasets.core.features.x; y", "a.b.C", "..")
        name = random.Random(seed).choice(names)
        text: Any = {"pythonClassName": name}
        for _ in range(seed % 50):
            text = {"featuresDict": {"features": [text]}}
        content = json.dumps(text).encode()
        content = damage(random.Random(seed), content) if which == "features" else content
        (own / "features.json").write_bytes(content)
        (own / "dataset_info.json").write_text(random.Random(seed).choice(INFOS))
        return load_dataset(DataConfig(name="own", dir=str(folder)))

    act = {"npz": npz, "report": saved}.get(which, of_tfds)
    meaning = NOTHING if act is of_tfds else True
    return Case("files", f"{which}, damaged by {seed}", act, meaning)


TREE = {"w": np.arange(50, dtype=np.float32), "b": np.ones(3, np.int8)}
SAVED: list[Path] = []


def checkpoints(draw: random.Random, data: Any) -> Case:
    del data
    seed = draw.getrandbits(32)

    def act(folder: Path) -> Any:
        if not SAVED or not SAVED[0].exists():
            SAVED[:] = [folder.parent / "whole"]
            checkpoint.save(SAVED[0], TREE, {"n": 1})
        own = random.Random(seed)
        shutil.copytree(SAVED[0], folder / "c")
        names = sorted(path for path in (folder / "c").rglob("*") if path.is_file())
        chosen = own.choice(names)
        change = own.choice(("damage", "damage", "delete", "add", "empty"))
        if change == "damage":
            chosen.write_bytes(damage(own, chosen.read_bytes()))
        elif change == "delete":
            chosen.unlink()
        elif change == "add":
            (chosen.parent / "more").write_text("")
        else:
            shutil.rmtree(folder / "c" / "variables")
        found, record = checkpoint.load(folder / "c", TREE)
        same = all(found[name].tobytes() == array.tobytes() for name, array in TREE.items())
        return same and record == {"n": 1}

    return Case("checkpoints", f"damaged by {seed}", act, True)


KINDS = {
    "settings": (settings, 7), "configs": (configs, 3), "commands": (commands, 2),
    "requests": (requests, 3), "arrays": (arrays, 2), "files": (files, 2),
    "checkpoints": (checkpoints, 1),
}  # fmt: skip
MEANT_OR_REFUSED = ("requests", "files", "checkpoints")
"""Kinds in which what means something may be refused nonetheless: damage, unusual types."""


def judge(case: Case, folder: Path, limit: float) -> tuple[str, str]:
    """Does what a case asks for; returns what came of it, and the message."""
    folder.mkdir()
    try:
        with in_time(limit), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # a value that a conversion changed
            warnings.simplefilter("error", RuntimeWarning)
            found = case.act(folder)
    except Hang:
        return "hang", ""
    except Exception as error:
        text = str(error)
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = Path(last).is_relative_to(HOME) or isinstance(error, UserError)
        kinds = isinstance(error, UserError | TypeError | ValueError | OSError)
        if not (ours and kinds and "\n" not in text and 0 < len(text) < 2000):
            return "library", f"{type(error).__name__}: {text[:300]} ({Path(last).name})"
        if case.meaning not in (ANY, NOTHING) and case.kind not in MEANT_OR_REFUSED:
            return "needless", text
        return "refused", text
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if case.meaning is NOTHING or (case.meaning is not ANY and not same(found, case.meaning)):
        return "nonsense", brief(found)
    return "taken", ""


def same(found: Any, meaning: Any) -> bool:
    return bool(found == meaning) and (found is None) == (meaning is None)


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raises :class:`Hang` after so many seconds."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(cases: int, seed: int, limit: float = 60.0) -> tuple[list[dict[str, Any]], list[str]]:
    """Judges so many cases; returns a row for each kind, and the faults in words."""
    draw, data = random.Random(seed), load_dataset(DataConfig())
    weights = [weight for _, weight in KINDS.values()]
    counts = {kind: dict.fromkeys(("cases", "refused", "taken", "faults"), 0) for kind in KINDS}
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="jaxunlearn-fuzz-") as home:
        for index in range(cases):
            kind = draw.choices(list(KINDS), weights)[0]
            case = KINDS[kind][0](random.Random(draw.getrandbits(64)), data)
            verdict, text = judge(case, Path(home) / str(index), limit)
            counts[kind]["cases"] += 1
            if verdict in ("refused", "taken"):
                counts[kind][verdict] += 1
            else:
                counts[kind]["faults"] += 1
                faults.append(f"{verdict}: {kind}: {case.text[:200]!r}: {text}")
        SAVED.clear()
    return [{"kind": kind, **row} for kind, row in counts.items()], faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for a case (60)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    from peers.report import about, tell  # beside the script, which tests load from elsewhere

    start = time.perf_counter()
    rows, faults = fuzz(options.cases, options.seed, options.limit)
    seconds = round(time.perf_counter() - start, 1)
    told = about(cases=options.cases, seed=options.seed, seconds=seconds)
    if tell(told, options.json, rows=rows, faults=faults):
        print(f"{'kind':14}" + "".join(f"{head:>9}" for head in list(rows[0])[1:]))
        for row in rows:
            print(f"{row['kind']:14}" + "".join(f"{row[head]:9}" for head in list(row)[1:]))
        print(*dict.fromkeys(faults), sep="\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
