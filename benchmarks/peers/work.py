"""Arithmetic and memory traffic of a program, and what a device can do at most."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp


class Limit(NamedTuple):
    """What a device can do at most, a second.

    Attributes:
      flops: operations in matrix products, by the type of the factors.
      bytes: between the device's memory and its cores.
      source: where the numbers are from.
    """

    flops: dict[str, float]
    bytes: float
    source: str


DATASHEETS: dict[str, tuple[float, float, float]] = {
    "NVIDIA H200": (495e12, 989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": (495e12, 989e12, 3.35e12),
    "NVIDIA H100 PCIe": (378e12, 756e12, 2.0e12),
    "NVIDIA A100-SXM4-80GB": (156e12, 312e12, 2.04e12),
    "NVIDIA A100-SXM4-40GB": (156e12, 312e12, 1.56e12),
    "NVIDIA A100-PCIE-40GB": (156e12, 312e12, 1.56e12),
    "NVIDIA L4": (60e12, 121e12, 0.30e12),
    "NVIDIA A10G": (35e12, 70e12, 0.60e12),
    "Tesla V100-SXM2-16GB": (15.7e12, 15.7e12, 0.90e12),
    "Tesla T4": (8.1e12, 8.1e12, 0.32e12),
    "TPU v4": (275e12, 275e12, 1.23e12),
    "TPU v5 lite": (197e12, 197e12, 0.82e12),
    "TPU v5": (459e12, 459e12, 2.77e12),
    "TPU v6 lite": (918e12, 918e12, 1.64e12),
}
"""``device_kind -> products of float32 (TF32 where there is one; on TPUs their bfloat16 passes)
and of bfloat16, bytes``, of makers' datasheets, dense."""


def limit_of(given: tuple[float, float] | None, size: int) -> Limit:
    """Returns the limit of the first device: given, from the datasheet, or else measured.

    Args:
      given: operations and bytes a second.
      size: side of the matrices that are multiplied where it is measured.
    """
    if given is not None:
        return Limit(dict.fromkeys(("float32", "bfloat16"), given[0]), given[1], "given")
    kind = jax.devices()[0].device_kind
    if kind in DATASHEETS:
        single, half, traffic = DATASHEETS[kind]
        return Limit({"float32": single, "bfloat16": half}, traffic, f"datasheet of {kind}")
    return measured_limit(size)


def measured_limit(size: int) -> Limit:
    """Returns what a matrix product, and the copy of an array, reach here."""
    product, double = jax.jit(jnp.dot), jax.jit(lambda x: x * 2)
    flops = {}
    for dtype in ("float32", "bfloat16"):
        x = jnp.ones((size, size), dtype)
        flops[dtype] = 2 * size**3 / median_seconds(lambda x=x: product(x, x), 5)
    x = jnp.ones(16 * size * size)
    traffic = 2 * x.nbytes / median_seconds(lambda: double(x), 5)
    return Limit(flops, traffic, f"measured, {size} x {size}")


def median_seconds(run: Callable[[], Any], rounds: int) -> float:
    """Returns the median seconds of a call, after one that is not counted."""
    jax.block_until_ready(run())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def products(jaxpr: Any) -> float:
    """Counts the operations of matrix products and convolutions in a trace: a sum is one, a
    product is one. The steps of a scan all count, those of a loop without a known end once.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, out = eqn.primitive.name, math.prod(getattr(eqn.outvars[0].aval, "shape", ()))
        if name == "dot_general":
            (axes, _), _ = eqn.params["dimension_numbers"]
            total += 2 * out * math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)
        elif name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            each = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
            # of a dilated input most entries are zeros that nobody multiplies
            total += 2 * out * each / math.prod(eqn.params["lhs_dilation"])
        inner = [products(part) for part in jax.extend.core.jaxprs_in_params(eqn.params)]
        if name == "cond":  # one of its branches runs
            total += max(inner)
        else:
            total += sum(inner) * (eqn.params["length"] if name == "scan" else 1)
    return total


class Work(NamedTuple):
    """Operations in products, and bytes read and written as the compiler counts them."""

    flop: float
    bytes: float | None


def work_of(jitted: Any, *args: Any, **options: Any) -> Work:
    """Counts what one call of a program does; without a loop, all of it."""
    traced = jitted.trace(*args, **options)
    told = traced.lower().compile().cost_analysis() or {}
    told = told[0] if isinstance(told, list) else told
    return Work(products(traced.jaxpr), told.get("bytes accessed"))
