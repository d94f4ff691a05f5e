"""Account of the memory that a run needs on each device, before anything is made.

Everything follows from shapes: the data are read, since their sizes are what they are, but no
model is made, and of a checkpoint ``config.json`` alone is read. Models, optimizers and data are
counted to the byte, as the run holds them; what a step needs besides is estimated from its trace
(:mod:`jaxunlearn.jaxprs.liveness`).

Legend, bytes on one device: ``given``, the model that a stage starts from, which the run keeps;
``model``, the copy that is trained; ``adapters``; ``optimizer``; ``references``, what objectives
read of the original: a copy of it, log-probabilities; ``data``; ``gradients``, what has the shape
of a parameter: gradients, updates, kernels with their adapters; ``gathered``, parameters put
together from all devices; ``logits``; ``activations``; ``cache``, keys and values of generation.
"""

import dataclasses
import inspect
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich import box
from rich.table import Table

from jaxunlearn.config import Config
from jaxunlearn.core.errors import ConfigError, expect_counts
from jaxunlearn.core.keys import key_like
from jaxunlearn.core.registry import load
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import Sets, Unlearner
from jaxunlearn.data.batches import rows_like
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.data.sets import request
from jaxunlearn.engine import Chain
from jaxunlearn.engine.driver import prepared_like, visible_sets
from jaxunlearn.engine.loop import Job, advance, init, result
from jaxunlearn.engine.sharding import Sharding, make_sharding, spec_of
from jaxunlearn.experiment.plan import Plan, make_plan
from jaxunlearn.jaxprs.liveness import bytes_of, peak
from jaxunlearn.models import NETWORKS
from jaxunlearn.report.text import number

HELD = ("given", "model", "adapters", "optimizer", "references", "data")
NEEDED = ("gradients", "gathered", "logits", "activations", "cache")
COLUMNS = HELD + NEEDED
"""What bytes are counted as; see the module's docstring."""

_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_OPTIMIZER = re.compile(r"(^|/)(\w+_)?opt(_state)?(/|$)")
_REFERENCES = ("original", "prepared")


def parse_bytes(text: str) -> float:
    """Reads a size: ``"80GB"`` is 80e9 bytes, ``"80GiB"`` 80 times 2^30.

    Raises:
      ConfigError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise ConfigError(f"memory: expected a size such as 80GB or 40GiB, got {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def account(
    config: Config, *, devices: int | None = None, memory: float | None = None
) -> dict[str, Any]:
    """Tells what each stage of a run needs on every device of its mesh.

    Args:
      config: the experiment.
      devices: of a mesh that may be larger than this machine's; default: those here.
      memory: bytes that a device has, for a verdict.

    Returns:
      JSON: ``name``, ``kind``, ``mesh`` (axes), ``devices``, ``parameters`` (how many),
      ``memory``, ``notes``, and ``stages``: for each the ``phase`` in which it needs the most,
      its ``bytes`` by :data:`COLUMNS`, ``total``, ``fits`` (``None`` without ``memory``), and
      the totals of all ``phases``. ``remat``: the largest activations of a step with and
      without, for networks that have the option.

    Raises:
      UserError: as a run would before it begins: a mesh that does not divide, an unknown
        method, texts beyond the context.
    """
    count = len(jax.devices()) if devices is None else devices
    expect_counts(devices=count)
    mesh = make_sharding(config.mesh, config.sharding_rules, count)
    plan = make_plan(config, Path(), outlined=mesh)
    # devices that are told of are no CPUs
    vectorised = devices is not None or jax.default_backend() != "cpu"
    ruler = _Ruler(plan, mesh, vectorised)
    stages = {name: _verdict(phases, memory) for name, phases in _stages(plan, ruler)}
    prepared = [
        label
        for label, (method, _) in plan.methods.items()
        if isinstance(method, Unlearner) and method.prepare is not None
    ]
    told = []
    if prepared:
        told.append(
            f"{', '.join(prepared)}: what they find out before is done by programs of their own, "
            "not counted here"
        )
    if len(mesh.mesh.axis_names) > 1:
        told.append(
            f"activations count as divided over {mesh.mesh.axis_names[0]} alone: a compiler may "
            "divide them over the other axes, too"
        )
    notes = [*plan.left_out, *told, *plan.kind.supplied(plan.settings).notes, *ruler.notes]
    return {
        "name": config.name,
        "kind": plan.kind.name,
        "mesh": dict(mesh.mesh.shape),
        "devices": mesh.mesh.size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(ruler.like)),
        "memory": memory,
        "stages": stages,
        "remat": _both_ways(plan, stages, mesh),
        "notes": notes,
    }


def _verdict(phases: Mapping[str, Mapping[str, float]], memory: float | None) -> dict[str, Any]:
    totals = {name: round(sum(parts.values())) for name, parts in phases.items()}
    phase = max(totals, key=lambda name: totals[name])
    found = {what: round(phases[phase].get(what, 0)) for what in COLUMNS}
    fits = None if memory is None else totals[phase] <= memory
    return {
        "phase": phase, "bytes": found, "total": totals[phase], "fits": fits, "phases": totals,
        "step": round(phases.get("steps", {}).get("activations", 0)),
    }  # fmt: skip


def _both_ways(plan: Plan, stages: Mapping[str, Any], mesh: Sharding) -> dict[str, int] | None:
    """Returns the largest activations of a step with and without recomputation."""
    model = plan.config.model
    if "remat" not in inspect.signature(load(NETWORKS.find(model.name).target)).parameters:
        return None
    own = bool(model.options.get("remat", False))
    options = {**model.options, "remat": not own}
    other = make_plan(
        dataclasses.replace(plan.config, model=dataclasses.replace(model, options=options)),
        Path(), outlined=mesh, earlier=plan,
    )  # fmt: skip
    rest = _stages(other, _Ruler(other, mesh, False), steps_alone=True)
    most = {
        own: max(one["step"] for one in stages.values()),
        not own: max(_verdict(phases, None)["step"] for _, phases in rest),
    }
    return {"with": most[True], "without": most[False]}


class _Ruler:
    """Measures trees and programs of a plan on one device.

    Attributes:
      like: variables, as shapes and dtypes.
      notes: sentences on what was assumed.
      vectorised: whether several models are computed together, as on accelerators.
    """

    def __init__(self, plan: Plan, sharding: Sharding, vectorised: bool) -> None:
        self.sharding, self.vectorised = sharding, vectorised
        self.at_a_time = plan.config.at_a_time
        self.like = jax.eval_shape(plan.model.init, key_like())
        self.notes: list[str] = []
        self.cache: set[tuple[int, ...]] = set()
        self.parameters: dict[tuple[int, ...], float] = {}
        self.largest = 0.0
        for path, leaf in named_leaves(self.like).items():
            share = self.share(path, leaf.shape)
            if len(leaf.shape) > 1:
                for shape in (leaf.shape, leaf.shape[::-1]):
                    self.parameters[shape] = max(share, self.parameters.get(shape, 0))
            if share < 1:
                self.largest = max(self.largest, bytes_of(leaf))
        x = inputs_like(request(plan.sets, 0).train, 2)
        apply = getattr(plan.model, "apply", None)
        logits = None if apply is None else jax.eval_shape(apply, self.like, x)
        self.outputs = 0 if logits is None or len(logits.shape) < 2 else logits.shape[-1]

    def share(self, path: str, shape: tuple[int, ...]) -> float:
        """Returns which share of an array lies on one device."""
        axes = [axis for axis in spec_of(path, shape, self.sharding) if axis is not None]
        return 1 / math.prod(self.sharding.mesh.shape[axis] for axis in axes)

    def size(self, tree: Any) -> float:
        """Returns the bytes of parameters, or of what repeats their paths."""
        return sum(
            bytes_of(leaf) * self.share(path, leaf.shape)
            for path, leaf in named_leaves(tree).items()
        )

    def split(self, state: Any) -> dict[str, float]:
        """Returns the bytes of a method's state by what they are."""
        found: dict[str, float] = defaultdict(float)
        for path, leaf in named_leaves(state).items():
            first = path.partition("/")[0]
            what = "references" if first in _REFERENCES else "model"
            what = "adapters" if first == "adapters" else what
            what = "optimizer" if _OPTIMIZER.search(path) else what
            found[what] += bytes_of(leaf) * self.share(path, leaf.shape)
        return found

    def sized(self, aval: Any) -> tuple[str, float]:
        """Tells what a value inside a program is counted as, and its bytes."""
        shape, size = tuple(aval.shape), float(bytes_of(aval))
        if shape in self.parameters:
            return "gradients", size * self.parameters[shape]
        if shape in self.cache:
            return "cache", size
        last = len(shape) > 1 and shape[-1] == self.outputs
        return ("logits" if last else "activations"), size

    def inside(self, jaxpr: Any) -> dict[str, float]:
        """Returns what a program needs between its arguments and its results."""
        found = peak(jaxpr, self.sized)
        # the parameters of one layer are put together while those of the next arrive
        return found | ({"gathered": 2 * self.largest} if self.largest else {})

    def batch(self, size: int) -> int:
        """Returns how many examples of a batch one device reads."""
        axis = self.sharding.mesh.axis_names[0]
        parts = self.sharding.mesh.shape[axis]
        if size % parts == 0:
            return size // parts
        self._note(f"a batch of {size} does not divide over {parts} devices: each reads all of it")
        return size

    def at_once(self, count: int) -> int:
        """Returns how many of several models a program computes together."""
        return min(count, self.at_a_time or count) if self.vectorised else 1

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


Phases = dict[str, dict[str, float]]


def _stages(
    plan: Plan, ruler: _Ruler, *, steps_alone: bool = False
) -> Iterator[tuple[str, Phases]]:
    phases_of = partial(_phases, ruler, steps_alone=steps_alone)
    supplied, data = plan.kind.supplied(plan.settings), _data_of(plan)
    train = plan.config.train
    recipe, _ = plan.kind.recipe(plan.model, train, plan.retained, plan.settings)
    start = ruler.like if supplied.start else None
    if not supplied.original:
        whole = Sets(retain=request(plan.sets, 0).train)
        yield "original", phases_of(recipe, start, whole, train.batch_size, data)
    first = request(plan.retraining, 0)
    held = {"given": ruler.size(ruler.like)}  # the original, which waits for its judgement
    yield "retrained", phases_of(recipe, start, first, train.batch_size, {**data, **held})
    # each class by itself, all in one program; on a mesh one after the other
    alone = plan.config.request.in_turn or ruler.sharding.mesh.size > 1
    requests = 1 if alone else len(plan.requests)
    others = 1 if alone else plan.config.retrained * requests - 1
    if others > 1 and not steps_alone:
        one = phases_of(recipe, start, first, train.batch_size, {**data, **held})
        yield "retrained, others", _several(one, others, ruler.at_once(others))
    for label, (method, runner) in plan.methods.items():
        links = method.links if isinstance(method, Chain) else ((method, runner),)
        for place, (link, own) in enumerate(links):
            name = f"{label}, link {place}" if isinstance(method, Chain) else label
            sets = request(plan.sets, 0)
            found = phases_of(link, ruler.like, sets, own["batch_size"], data)
            together = requests if link is method else 1  # chains run one by one
            yield name, _several(found, together, ruler.at_once(together))
    if not steps_alone:
        yield "judging", _judging(plan, ruler, data)


def _data_of(plan: Plan) -> dict[str, float]:
    parts = [part for sets in (plan.sets, plan.retraining) for part in sets if part is not None]
    leaves = {id(leaf): leaf for part in parts for leaf in jax.tree.leaves(part)}
    return {"data": float(sum(map(bytes_of, leaves.values())))}


def _phases(
    ruler: _Ruler,
    method: Unlearner,
    start: Any,
    sets: Sets,
    batch_size: int,
    held: Mapping[str, float],
    *,
    steps_alone: bool = False,
) -> Phases:
    """Returns the bytes of a stage's phases: what comes before the steps, a step, the result."""
    shown = visible_sets(method.needs, sets)
    key = key_like()
    like = ruler.like if start is None else start
    prepared = prepared_like(method, like, shown)
    job = Job(method, ruler.batch(batch_size))
    begun = init.trace(start, shown, key, prepared, job=job)
    state = begun.out_info
    zero = jax.ShapeDtypeStruct((), jnp.int32)
    rows = rows_like(shown, job.batch_size, 1)
    step = advance.trace(state, shown, key, zero, zero, rows, job=job, length=1)
    own = _sum(held, {"given": 0.0 if start is None else ruler.size(start)})
    own = _sum(own, {"references": ruler.size(prepared)}, ruler.split(state))
    steps = {"steps": _sum(own, ruler.inside(step.jaxpr))}
    if steps_alone:
        return steps
    end = result.trace(state, job=job)
    made = {"model": ruler.size(ruler.like)}
    return {
        "before": _sum(own, ruler.inside(begun.jaxpr)),
        **steps,
        "result": _sum(own, made, ruler.inside(end.jaxpr)),
    }


def _several(one: Phases, count: int, at_once: int) -> Phases:
    """Returns the bytes of several models that one program makes, given those of one of them."""
    own = ("model", "adapters", "optimizer", "references")
    shared = ("given", "data")

    def times(what: str) -> int:
        return 1 if what in shared else count if what in own else at_once

    return {
        phase: {what: size * times(what) for what, size in parts.items()}
        for phase, parts in one.items()
    }


def _judging(plan: Plan, ruler: _Ruler, data: Mapping[str, float]) -> Phases:
    """Returns the bytes of judgement: all models of a run, and what is computed on one."""
    together = plan.config.seeds == 1 and len(plan.requests) == 1
    count = 1 + plan.config.retrained + (len(plan.methods) if together else 1)
    held = _sum(data, {"given": count * ruler.size(ruler.like)})
    judged = plan.kind.judging(
        plan.model, plan.settings, inputs_like(request(plan.sets, 0).train, 1)
    )
    ruler.cache = {tuple(leaf.shape) for leaf in jax.tree.leaves(judged.cache)}
    phases = {"models": held}
    for name, (fn, arguments) in judged.programs.items():
        traced = jax.jit(fn).trace(ruler.like, *arguments)
        phases[name] = _sum(held, ruler.inside(traced.jaxpr))
    ruler.cache = set()
    for name, (method, batch_size) in judged.methods.items():
        sets = request(plan.sets, 0)
        found = _phases(ruler, method, ruler.like, sets, batch_size, held)
        phases[name] = max(found.values(), key=lambda parts: sum(parts.values()))
    return phases


def _sum(*parts: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for one in parts:
        for what, size in one.items():
            found[what] += size
    return dict(found)


def to_tables(found: Mapping[str, Any]) -> tuple[list[Table], list[str]]:
    """Returns an account for the terminal: what is held, what a phase needs besides, sentences.

    A row is a stage in the phase in which it needs the most; columns without a byte are left out.
    """
    stages = found["stages"]
    used = [what for what in COLUMNS if any(one["bytes"][what] for one in stages.values())]
    tables = []
    for columns, more in ((HELD, ("total", "fits")), (NEEDED, ("most in",))):
        shown = [what for what in columns if what in used]
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("stage", no_wrap=True)
        for head in (*shown, *more):
            table.add_column(head, justify="right", no_wrap=True)
        for name, one in stages.items():
            verdict = {None: "-", True: "yes", False: "no"}[one["fits"]]
            rest = {"total": _size(one["total"]), "fits": verdict, "most in": one["phase"]}
            table.add_row(
                name, *(_size(one["bytes"][what]) for what in shown), *(rest[head] for head in more)
            )
        tables.append(table)
    mesh = ", ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    notes = [f"{found['parameters']:,} parameters; bytes on one device of {mesh}"]
    if found["memory"]:
        lacking = [name for name, one in stages.items() if not one["fits"]]
        told = f"does not fit: {', '.join(lacking)}" if lacking else "fits"
        notes.append(f"a device has {number(found['memory'], 'B')}: {told}")
    if found["remat"]:
        both = {way: number(size, "B") for way, size in found["remat"].items()}
        notes.append(
            f"activations of a step: {both['with']} with model.options.remat=true, "
            f"{both['without']} without"
        )
    notes.append("gradients, gathered, logits, activations and cache are estimates from the trace")
    return tables, notes + found["notes"]


def _size(value: float) -> str:
    return number(value, "B") if value else "-"


def fits(found: Mapping[str, Any]) -> bool:
    """Tells whether every stage fits; true where no memory was given."""
    return all(one["fits"] is not False for one in found["stages"].values())
