"""Metrics that forgetting is judged by: one row each, in the order of the table."""

from jaxunlearn.metrics import (
    classification,
    comparison,
    ensembles,
    generation,
    language,
    membership,
    robustness,
)
from jaxunlearn.metrics.registry import METRICS, Evidence, Metric, Missing, measure, register_metric

__all__ = ["METRICS", "Evidence", "Metric", "Missing", "measure", "register_metric"]

_COSTS = {
    "seconds": Metric("time, compile apart", "cost", "small", "s", short="time"),
    "compile_seconds": Metric("time to compile", "cost", "small", "s"),
    "memory": Metric("memory of the compiled program", "cost", "small", "B", short="memory"),
    "steps": Metric("steps", "cost", "small", "d"),
    "examples": Metric("examples seen", "cost", "small", "d"),
    "speedup": Metric("speed-up over retraining", "cost", "large", "x", short="speed-up"),
    "speedup_with_compile": Metric("speed-up, compile included", "cost", "large", "x"),
}
"""Recorded when a model is made."""

_FILES = (classification, membership, comparison, robustness, ensembles, generation, language)
for _name, _row in [*(pair for one in _FILES for pair in one.ROWS.items()), *_COSTS.items()]:
    METRICS.register(_name, _row, overwrite=True)  # before those of other packages
