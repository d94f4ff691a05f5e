"""Relevance on networks of other people's packages, unchanged: what runs, and whether it adds up.

    python benchmarks/third_party.py                            # all that is installed
    python benchmarks/third_party.py --packages flax equimo     # of some packages
    python benchmarks/third_party.py --only LSTM DenseNet       # whose name holds a word
    python benchmarks/third_party.py --deep     # what tracing and compiling takes, by depth
    python benchmarks/third_party.py --json

Installs nothing, downloads nothing, and skips what is missing; parameters are drawn, running
statistics of batch norm are those of the data. Each network runs in float64 with LRP-0
(``rules.zero()``), the start is 1 at the largest logit of each example. The columns:

* ``units``: linear units found;
* ``gap``: what is left of start - input - ledger, the worst example;
* ``sum |R|``: of the input of an example, the worst; the start is 1;
* ``at input``: the share of the start that arrives there, median over the examples;
* ``error``: largest difference from LRP-0 as a gradient (``peers/slopes.py``, written apart from
  the engine), relative to the largest relevance; empty where that does not know an operation;
* ``seconds``: tracing and compiling of the relevance, and of the gradient.
"""

import argparse
import importlib.metadata
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers.networks import DEEP, NETWORKS, Network
from peers.report import about, tell
from peers.slopes import relevance

from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.lrp import rules

DEEP_COLUMNS = (
    "gradient traced s", "gradient compiled s", "relevance traced s", "relevance compiled s",
)  # fmt: skip
COLUMNS = ("network", "package", "units", "gap", "sum |R|", "at input", "error", "seconds")


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float]:
    """Returns the compiled function, and the seconds of tracing and compiling it."""
    begin = time.perf_counter()
    made = jax.jit(fn).lower(*args).compile()
    return made, time.perf_counter() - begin


def slopes(fn: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any], jax.Array]:
    """Returns the gradient of each example's largest logit, at the input."""

    def gradient(variables: Any, x: Any) -> Any:
        logits, back = jax.vjp(lambda v: fn(variables, v), x)
        return back(starts.argmax()(logits))[0]

    return gradient


def compile_time(fn: Any, variables: Any, x: jax.Array) -> dict[str, Any]:
    """The processor's seconds for relevance by the default rule and the gradient, in float32."""

    def narrow(leaf: Any) -> Any:
        floats = jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)
        return jnp.asarray(leaf, jnp.float32) if floats else leaf

    row: dict[str, Any] = {}
    variables, x = jax.tree.map(narrow, (variables, x))
    for name, function in (("gradient", slopes(fn)), ("relevance", lrp(fn))):
        begin = time.process_time()
        lowered = jax.jit(function).lower(variables, x)
        traced = time.process_time()
        lowered.compile()
        row[f"{name} traced s"] = traced - begin
        row[f"{name} compiled s"] = time.process_time() - traced
    return row


def measure(fn: Any, variables: Any, x: jax.Array) -> dict[str, Any]:
    """Runs relevance and gradient; the row of one network."""
    run, seconds = compiled(lrp(fn, rules.zero()), variables, x)
    out = run(variables, x)
    start = np.asarray(starts.argmax()(out.logits)).sum(axis=1)
    values = np.asarray(out.input).reshape(len(x), -1)
    absorbed = sum(np.asarray(entry.total) for entry in out.ledger.values())
    found = values.sum(axis=1)
    row = {
        "units": len(out.neurons),
        "gap": float(np.abs(start - found - absorbed).max()),
        "sum |R|": float(np.abs(values).sum(axis=1).max()),
        "at input": float(np.median(found)),
        "relevance s": seconds,
    }
    if jnp.issubdtype(x.dtype, jnp.floating):
        row["gradient s"] = compiled(slopes(fn), variables, x)[1]
        row.update(difference(fn, variables, x, out))
    return row


def difference(fn: Any, variables: Any, x: jax.Array, out: Any) -> dict[str, Any]:
    """The error of the relevance, where the reference covers the network."""
    start = starts.argmax()(out.logits)
    try:
        exact = np.asarray(jax.jit(lambda v, x: relevance(fn, v, x, start))(variables, x))
    except NotImplementedError as error:
        return {"reference": _line(error)}
    if not np.isfinite(exact).all():  # it takes the difference of what is masked
        return {"reference": "is no number"}
    return {"error": float(np.abs(np.asarray(out.input) - exact).max() / np.abs(exact).max())}


def row_of(network: Network, measure: Callable[..., dict[str, Any]] = measure) -> dict[str, Any]:
    """One row of the table: what was measured, or why not."""
    row: dict[str, Any] = {"network": network.name, "package": network.packages[0]}
    try:
        row["version"] = importlib.metadata.version(network.packages[0])
        [importlib.metadata.version(name) for name in network.packages]
    except importlib.metadata.PackageNotFoundError as error:
        return {**row, "skipped": f"{error.name} is not installed"}
    try:
        built = network.build()
        jax.eval_shape(*built)
    except Exception as error:  # theirs: another version than it was written for
        return {**row, "skipped": _line(error), "trace": traceback.format_exc()}
    try:
        return {**row, **measure(*built)}
    except Exception as error:
        return {**row, "refused": _line(error), "trace": traceback.format_exc()}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def rows_of(networks: list[Network], deep: bool) -> Iterator[dict[str, Any]]:
    with jax.enable_x64(not deep):
        for network in networks:
            yield row_of(network, compile_time if deep else measure)
            jax.clear_caches()  # tens of networks in one process


def text_of(row: dict[str, Any]) -> str:
    """One line of the Markdown table."""
    cells = [row["network"], f"{row['package']} {row.get('version', '')}"]
    seconds = [f"{value:.1f}" for key, value in row.items() if key in DEEP_COLUMNS]
    if seconds:
        return f"| {' | '.join([*cells, *seconds])} |"
    if "gap" not in row:
        reason = row.get("refused") or f"skipped: {row['skipped']}"
        return f"| {' | '.join(cells)} | {reason} |"
    error = f"{row['error']:.0e}" if "error" in row else ""
    both = f"{row['relevance s']:.1f}"
    both += f" / {row['gradient s']:.1f}" if "gradient s" in row else ""
    cells += [
        str(row["units"]), f"{row['gap']:.0e}", f"{row['sum |R|']:.3g}", f"{row['at input']:.3g}",
        error, both,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--packages", nargs="+", help="of these packages")
    parser.add_argument("--only", nargs="+", help="whose name holds one of these words")
    parser.add_argument("--deep", action="store_true", help="deep networks, compile times alone")
    parser.add_argument("--trace", action="store_true", help="print the whole errors")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    chosen = [
        network
        for network in (DEEP if options.deep else NETWORKS)
        if (not options.packages or network.packages[0] in options.packages)
        and (not options.only or any(word in network.name for word in options.only))
    ]
    told = about("jaxlib", "flax")
    if not options.json:
        tell(told, False)
        print()
        columns = (*COLUMNS[:2], *DEEP_COLUMNS) if options.deep else COLUMNS
        print(f"| {' | '.join(columns)} |\n|{' :--- |' * 2}{' ---: |' * (len(columns) - 2)}")
    rows = []
    for row in rows_of(chosen, options.deep):
        trace = row.pop("trace", None)
        rows.append(row)
        if not options.json:
            print(text_of(row), flush=True)
            if options.trace and trace:
                print(trace)
    if options.json:
        tell(told, True, rows=rows)


if __name__ == "__main__":
    main()
