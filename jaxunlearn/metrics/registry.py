"""Metrics: one row each, and the one way in which a model is measured.

A metric reads the *evidence* of a model: an object whose attributes (predictions, features,
weights, ...) are computed once, when the first metric asks for them. Which metrics a kind of
model has follows from what its evidence provides.
"""

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxunlearn.core.errors import brief, did_you_mean, expect, sentence
from jaxunlearn.core.processes import gathered
from jaxunlearn.core.registry import Registry
from jaxunlearn.core.statistics import bootstrap
from jaxunlearn.core.types import Key, Sets, Subset, Variables
from jaxunlearn.data.sets import num_examples

SCOPES = ("model", "original", "retrained", "both", "ensemble")
SINGLE = ("model", "original", "retrained", "both")
"""Scopes of metrics that a single model has, where there are retrained ones."""
GROUPS = ("forgetting", "utility", "privacy", "truth", "cost")
IDEALS = ("as retrained", "small", "large", "0.5")
DRAWS = 1000
"""Draws of the bootstrap over examples."""


class Missing(LookupError):
    """Raised by a metric that does not apply: a set is missing, say; its row is left out."""


class Metric(NamedTuple):
    """Row of the registry.

    Attributes:
      label: what tables call it.
      group: rows of one group stand together, in the order of :data:`GROUPS`.
      ideal: one of :data:`IDEALS`.
      format: ``"s"`` (seconds), ``"B"`` (bytes), ``"x"`` (a ratio), ``"d"`` (a count) or a Python
        format.
      function: by scope, see there; ``None`` for what is recorded when a model is made.
      needs: attributes of the evidence that the function reads.
      scope: ``"model"``: ``function(evidence)``; ``"original"``: ``function(evidence, that of the
        original)``; ``"retrained"``: ``function(evidence, [that of each retrained model])``, the
        evidence being one of these where a retrained model is measured; ``"both"``:
        ``function(evidence, that of the original, [that of each retrained model])``;
        ``"ensemble"``: ``function([evidence of each member], [that of each retrained model])``,
        for models given as several members, and of a run those of three seeds or more.
      each: the function returns an array ``[N]``, a value for each example: the table shows the
        mean, the values lie beside the report.
      averaged: the function returns an array ``[N]``, too, whose values are not kept; the mean of
        one model has an interval over examples, as that of ``each`` has.
      along: of a curve: the function returns a sequence, and this is what it runs along.
      short: how the papers call it.
      extra: measured only where it is asked for, by its name or ``"all"``: what costs much, or says
        what another row says already.
      version: to be raised when something that the function calls changes its value; changes of
        the function itself are noticed.
    """

    label: str
    group: str
    ideal: str
    format: str
    function: Callable[..., Any] | None = None
    needs: tuple[str, ...] = ()
    scope: str = "model"
    each: bool = False
    along: str = ""
    short: str = ""
    version: int = 1
    extra: bool = False
    averaged: bool = False


class Evidence:
    """Evidence of one model; a kind of model derives its own, with cached attributes.

    Attributes:
      model, variables, sets, key: of what is measured, and for what is drawn.
      provides: names of the attributes that metrics may need.
    """

    provides: frozenset[str] = frozenset({"weights"})

    def __init__(self, model: Any, variables: Variables, sets: Sets, key: Key) -> None:
        if sets.forget is None or sets.retain is None:
            raise ValueError("sets: expected forget and retain, got a request without one of them")
        # every process judges on devices of its own
        self.variables = gathered(variables)
        self.model, self.sets, self.key = model, sets, key

    @property
    def weights(self) -> Variables:
        """Returns the variables."""
        return self.variables

    def kept(self) -> Any:
        """Returns what metrics of ensembles read, without the model; ``None``: nothing.

        An object with some of the attributes of the evidence, and their names in ``provides``.
        """
        return None

    def is_sound(self) -> bool:
        """Tells whether the model's predictions are finite, so that others can be set beside it."""
        return True

    def part(self, name: str) -> Subset:
        """Returns one of the sets; :class:`Missing` where it has no examples."""
        part: Subset | None = getattr(self.sets, name)
        if part is None or num_examples(part) == 0:
            raise Missing(name)
        return part


_Evidence = TypeVar("_Evidence", bound=Evidence)


def others(evidence: _Evidence, retrained: Sequence[_Evidence]) -> list[_Evidence]:
    """Returns the retrained models that a model is set beside: sound ones, without itself.

    Raises:
      Missing: there is no other.
      ValueError: no other has finite predictions: they have failed in their own cells.
    """
    rest = [one for one in retrained if one is not evidence]
    if not rest:
        raise Missing("another retrained model")
    sound = [one for one in rest if one.is_sound()]
    if not sound:
        raise ValueError("retrained: expected a model with finite predictions, got none")
    return sound


class _Metrics(Registry[Metric]):
    """Registry that checks what is misspelt in a row, wherever the row comes from."""

    def register(self, name: str, row: Metric, *, overwrite: bool = False) -> None:
        expect(f"metrics.{name}", row, Metric)
        _check_row(row)
        super().register(name, row, overwrite=overwrite)


def _check_row(row: Metric) -> None:
    for field, known in (("scope", SCOPES), ("ideal", IDEALS)):
        if getattr(row, field) not in known:
            raise ValueError(f"{field}: expected one of {known}, got {getattr(row, field)!r}")
    for field in ("label", "group", "along", "short"):
        expect(field, getattr(row, field), str)
    if row.function is not None and not callable(row.function):
        raise TypeError(f"function: expected a function, got {brief(row.function)}")
    # a group of one's own is welcome, and so is what a kind of models not yet known provides
    meant = row.group.strip().lower()
    hint = f"; did you mean {meant!r}?" if meant in GROUPS else did_you_mean(meant, GROUPS)
    if row.group not in GROUPS and hint:
        raise ValueError(f"group: expected another or one of {GROUPS}, got {row.group!r}{hint}")
    if isinstance(row.needs, str) or not all(isinstance(one, str) for one in row.needs):
        raise TypeError(f"needs: expected a tuple of names, got {brief(row.needs)}")
    provided = _provided(Evidence)
    for one in set(row.needs) - provided:
        if hint := did_you_mean(one, provided):
            raise ValueError(
                f"needs: expected what some evidence provides, {', '.join(sorted(provided))}, got "
                f"{one!r}{hint}"
            )
    try:
        if row.format not in ("s", "B", "x", "d"):
            format(0.5, row.format)
    except (ValueError, TypeError):
        raise ValueError(
            f"format: expected 's', 'B', 'x', 'd' or a format of numbers such as '.3f', got "
            f"{brief(row.format)}"
        ) from None


def _provided(evidence: type[Evidence]) -> frozenset[str]:
    """Returns what the evidence of any kind of models provides, as far as it is imported."""
    return evidence.provides.union(*(_provided(one) for one in evidence.__subclasses__()))


METRICS: Registry[Metric] = _Metrics("metrics", Metric, {})


def register_metric(name: str, metric: Metric) -> None:
    """Adds a metric: every table of models whose evidence provides what it needs then has it.

    Raises:
      ConfigError: the name is taken.
      TypeError: ``metric`` is no row, or a field of it is of another type.
      ValueError: an unknown scope or ideal, a misspelt group or need, a format of no number.
    """
    METRICS.register(name, metric)


class Measured(NamedTuple):
    """Measurements of one model.

    Attributes:
      values: by metric: a number, or a list of a curve; NaN where the metric failed.
      failed: why, for those that failed.
      each: values of each example, ``[N]``, by metric.
      versions: by metric, what it was measured with.
      averaged: values ``[N]`` of examples whose mean a metric is, of those in ``each`` and others.
    """

    values: dict[str, Any]
    failed: dict[str, str]
    each: dict[str, np.ndarray]
    versions: dict[str, str]
    averaged: Mapping[str, np.ndarray] = {}

    def intervals(self) -> dict[str, float]:
        """Computes half the width of 95 % intervals over examples, by metric, by bootstrap.

        They say how a mean of one model would vary with other examples, not with other seeds.
        """
        sound = {name: one for name, one in self.averaged.items() if name not in self.failed}
        found = {name: bootstrap(values, draws=DRAWS) for name, values in sound.items()}
        return {name: (high - low) / 2 for name, (low, high) in found.items()}


def applying(
    evidence: type[Evidence] | Evidence, scopes: Sequence[str] = SCOPES, asked: Sequence[str] = ()
) -> list[str]:
    """Lists the metrics that a kind of evidence has, of some scopes, without those recorded.

    Args:
      asked: names of extra ones that are wanted, or ``"all"``; see :func:`check_asked`.
    """
    return [
        name
        for name, row in METRICS.items()
        if row.function
        and row.scope in scopes
        and set(row.needs) <= evidence.provides
        and (not row.extra or name in asked or "all" in asked)
    ]


def check_asked(asked: Sequence[str], where: str = "metrics") -> tuple[str, ...]:
    """Checks names of metrics that are measured besides the usual ones.

    Raises:
      TypeError: no sequence of names.
      ConfigError: a name that no metric has.
    """
    if isinstance(asked, str) or not all(isinstance(name, str) for name in asked):
        raise TypeError(f"{where}: expected names of metrics, got {brief(asked)}")
    for name in asked:
        if name != "all":
            METRICS.find(name, where)
    return tuple(asked)


def versions_of(
    names: Sequence[str], original: str = "", retrained: Sequence[str] = ()
) -> dict[str, str]:
    """Returns what each metric is at present: models measured with another are measured anew.

    Args:
      original, retrained: digests of the models that a model is compared with.
    """
    beside = {
        "original": (original,), "retrained": retrained, "both": (original, *retrained)
    }  # fmt: skip
    found = {}
    for name in names:
        row = METRICS[name]
        against = "".join(f" {digest[:8]}" for digest in beside.get(row.scope, ()))
        found[name] = f"{row.version}-{_digest(row.function)}{against}"
    return found


def _digest(function: Any) -> str:
    """Digests the source of a function, so that a changed one is noticed.

    Of the metrics of this room, whose rows are short and call each other, all sources count.
    """
    bound = ""
    while isinstance(function, functools.partial):
        bound += repr((function.args, sorted(function.keywords.items())))
        function = function.func
    if not inspect.isroutine(function) and not hasattr(function, "__wrapped__"):
        function = type(function).__call__  # an object's text would name its place in memory
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):  # typed in at a prompt, or no Python function
        text = _compiled(getattr(function, "__code__", None)) or repr(function)
    if str(getattr(function, "__module__", "")).startswith(__package__):
        text += _sources()
    cells = getattr(function, "__closure__", None) or ()
    held = [cell.cell_contents for cell in cells]
    bound += repr([one for one in held if isinstance(one, int | float | str)])
    return hashlib.sha256((bound + text).encode()).hexdigest()[:8]


@functools.cache
def _sources() -> str:
    """Reads what the metrics of this room are computed by."""
    names = (
        "agreement", "answers", "attacks", "classification", "comparison", "distances",
        "ensembles", "exposure", "generation", "language", "language_attacks",
        "language_evidence", "membership", "relearning", "robustness",
    )  # fmt: skip
    home = Path(__file__).parent
    return "".join((home / f"{name}.py").read_text(encoding="utf-8") for name in names)


def _compiled(code: Any) -> str:
    """Returns what a function without source does: its instructions, names and constants."""
    if code is None:
        return ""
    constants = [_compiled(one) if inspect.iscode(one) else repr(one) for one in code.co_consts]
    return repr((code.co_code, code.co_names, constants))


def measure(
    evidence: Evidence,
    original: Evidence | None = None,
    retrained: Sequence[Evidence] = (),
    *,
    names: Sequence[str] | None = None,
    asked: Sequence[str] = (),
) -> Measured:
    """Measures one model: every metric that applies, each by itself.

    A metric that raises, or whose value is not finite (of a wrecked model), has failed: its
    value is NaN, the reason is kept, and the others are measured all the same.

    Args:
      original: evidence of the original; ``None``: ``evidence`` is that.
      retrained: evidence of the retrained models; without them, metrics of that scope are left
        out.
      names: of the metrics, by default all that apply.
      asked: extra ones that are wanted beside these, see :func:`applying`.
    """
    scopes = SINGLE if retrained else ("model", "original")
    values: dict[str, Any] = {}
    failed: dict[str, str] = {}
    averaged: dict[str, np.ndarray] = {}
    for name in applying(evidence, scopes, asked) if names is None else names:
        row = METRICS[name]
        assert row.function is not None
        before = original or evidence
        more: tuple[Any, ...] = {
            "original": (before,), "retrained": (retrained,), "both": (before, retrained)
        }.get(row.scope, ())  # fmt: skip
        try:
            found = row.function(evidence, *more)
            if row.each or row.averaged:
                averaged[name] = np.asarray(found)
                found = np.mean(averaged[name])
            values[name] = _curve(found) if row.along else _number(found)
        except Missing:
            continue
        # whatever a metric makes of a wrecked model, the rest of the table stands
        except Exception as error:
            values[name], failed[name] = math.nan, _reason(error)
    each = {name: array for name, array in averaged.items() if METRICS[name].each}
    return Measured(values, failed, each, versions_of(list(values)), averaged)


class _NotFinite(ValueError):
    """Raised for a value that says nothing."""


def _number(value: Any) -> float:
    """Returns what a metric found as a plain number, which JSON can hold."""
    number = value if type(value) is int else float(value)
    if not math.isfinite(number):
        raise _NotFinite(f"not finite ({number})")
    return number


def _curve(values: Any) -> list[float]:
    found = [float(value) for value in values]
    return [value if math.isfinite(value) else math.nan for value in found]


def _reason(error: Exception) -> str:
    text = sentence(error)
    return text if isinstance(error, _NotFinite) else f"{type(error).__name__}: {text}"


def measure_ensemble(
    members: Sequence[Any], retrained: Sequence[Any], asked: Sequence[str] = ()
) -> Measured:
    """Measures several models that differ by chance alone, as one.

    Args:
      members, retrained: evidence of each model, or what :meth:`Evidence.kept` left of it.
      asked: extra metrics that are wanted, see :func:`applying`.
    """
    values: dict[str, Any] = {}
    failed: dict[str, str] = {}
    each: dict[str, np.ndarray] = {}
    for name in applying(members[0], ("ensemble",), asked):
        row = METRICS[name]
        assert row.function is not None
        try:
            found = row.function(members, retrained)
            if row.each:
                each[name] = np.asarray(found)
                found = np.mean(each[name])
            values[name] = _number(found)
        except Missing:
            continue
        except Exception as error:
            values[name], failed[name] = math.nan, _reason(error)
    return Measured(values, failed, each, versions_of(list(values)), each)


def mean_measured(many: Sequence[Measured]) -> Measured:
    """Averages the measurements of the members of an ensemble; curves place by place."""
    failed: Mapping[str, str] = {}
    for one in reversed(many):
        failed = {**failed, **one.failed}
    names = [name for name in many[0].values if all(name in one.values for one in many)]
    values = {
        name: math.nan if name in failed
        else np.mean([one.values[name] for one in many], axis=0).tolist()
        for name in names
    }  # fmt: skip
    shared = set.intersection(*(set(one.each) for one in many))
    each = {name: np.mean([one.each[name] for one in many], axis=0) for name in shared}
    return Measured(values, dict(failed), each, many[0].versions)
