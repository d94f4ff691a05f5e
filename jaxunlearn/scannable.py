"""Whether a step may run inside a compiled loop on CPU.

XLA's weight gradient of a convolution is many times slower there inside a loop
than outside (jax issue 12868). The convolution of the built-in models avoids it;
a user's own model may not.
"""

from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

__all__ = ["has_weight_gradient_convolution"]


def has_weight_gradient_convolution(jaxpr: Jaxpr | ClosedJaxpr) -> bool:
    """Whether a jaxpr computes a convolution's weight gradient as a convolution on CPU.

    Such a convolution contracts over the batch: jax writes it with the batch of the
    left operand in the place of its features. Branches that
    ``jax.lax.platform_dependent`` keeps for other platforms do not count.
    """
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            if numbers.lhs_spec[0] != numbers.out_spec[0]:
                return True
        if any(has_weight_gradient_convolution(inner) for inner in _inner_on_cpu(eqn.params)):
            return True
    return False


def _inner_on_cpu(params: dict[str, Any]) -> list[Jaxpr | ClosedJaxpr]:
    platforms = params.get("branches_platforms")
    if platforms is not None:
        chosen = next(n for n, names in enumerate(platforms) if names is None or "cpu" in names)
        return [params["branches"][chosen]]
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                found.append(item)
    return found
