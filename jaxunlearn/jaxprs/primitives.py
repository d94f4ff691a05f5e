"""The primitives of JAX, a row each: all that is known of them stands here.

Steps, signs, axes, units and relevance read the table by :attr:`Op.row`; an operation whose
primitive is in no row is refused where relevance meets it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Shape = tuple[int, ...]


class Axis(NamedTuple):
    """An index that runs through (part of) one dimension of an array.

    Along dimension ``dim`` the index of position ``p`` is
    ``p // inner % size``: a reshape that merges dimensions leaves an axis whole.
    """

    dim: int
    inner: int
    size: int

    def exact(self, shape: Shape) -> bool:
        """Tells that the axis is the dimension, not a part of it."""
        return shape[self.dim] == self.size


class Contraction(NamedTuple):
    """A linear operation on data, with its dimensions as seen from the two operands.

    Attributes:
      data, kernel: positions of the operands.
      contracted: pairs (dimension of the data, dimension of the kernel).
      kept: dimension of the data -> dimension of the result.
      made: dimension of the result -> dimension of the kernel.
    """

    data: int
    kernel: int
    contracted: tuple[tuple[int, int], ...]
    kept: dict[int, int]
    made: dict[int, int]


Role = Literal[
    "call", "gradient", "loop", "linear", "pool", "max", "layout", "indexed", "sum", "product",
    "choice", "function", "mark", "unknown",
]  # fmt: skip
Sign = Literal["always", "all", "any", "first", "power", "product", "chosen"]
Move = Callable[[Axis, dict[str, Any], int, Shape, Shape], Axis | None]


class Row(NamedTuple):
    """A primitive, and all that is known of it.

    Attributes:
      name: of the primitive.
      role: ``call``, which runs what it holds; ``gradient``, a call that has a say in
        derivatives; ``loop``, whose body is not run once as it stands; ``linear``; ``pool``, a
        sum over positions; ``max``, an extreme over positions; ``layout``, which moves, copies
        or drops elements; ``indexed``, a layout whose further operands are positions; and
        element by element ``sum``, ``product``, ``choice`` (of one operand), ``function`` (of
        one value), ``mark`` (a value's name).
      sign: the results have no negative element ``always``, or if that holds of ``all``
        operands, of ``any``, of the ``first``, of those that a comparison has ``chosen``;
        ``power`` and ``product`` also where the exponent is even and the factors are one.
        ``None``: nothing is known.
      axis: ``(axis of an operand, params, position of the operand, shape of the operand, shape
        of the result) -> the axis of the result``, ``None`` if it is lost. Without a function
        it keeps its place element by element, and is lost otherwise.
      affine: what it does behind a linear operation that it is folded into, with a constant:
        ``scale``, ``shift``, ``flip`` the sign; or ``through``: it may lie in between.
      contract: ``(params, ranks of the operands, position of the data) -> dimensions``.
      keeps: the result holds every element of the operand once or more, and no other.
      fills: part of the result may be constant, or padding.
      still: the result is the operand, but for its type or its mark.
      pieces: linear or constant in pieces, with kinks or steps where they meet.
      reduces: what normalisers are made of.
      compares: the result tells where the first operand is not below the second.
      inverts: ``(params, positions of the operands that vary, constant operands or None) ->
        bool``: the result falls where the operand grows.
    """

    name: str
    role: Role
    sign: Sign | None = None
    axis: Move | None = None
    affine: Literal["scale", "shift", "flip", "through"] | None = None
    contract: Callable[[dict[str, Any], Sequence[int], int], Contraction] | None = None
    keeps: bool = False
    fills: bool = False
    still: bool = False
    pieces: bool = False
    reduces: bool = False
    compares: bool = False
    inverts: Callable[[dict[str, Any], list[int], Sequence[Any]], bool] | None = None

    @property
    def elementwise(self) -> bool:
        """Tells that each element of the result comes from its place in the operands."""
        return self.role in ("sum", "product", "choice", "function", "mark")

    @property
    def smooth(self) -> bool:
        """Tells that the result is no linear function of its operand, and has no kinks."""
        linear = self.pieces or self.still or self.compares or self.affine is not None
        return self.role == "function" and not linear

    @property
    def moves(self) -> bool:
        """Tells that relevance of the result lies at elements of the operand."""
        return self.role in ("layout", "indexed")


class Op(NamedTuple):
    """One primitive applied to values; a value is its number."""

    primitive: Any
    params: dict[str, Any]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    source_info: Any
    callers: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """Returns the primitive's name."""
        return str(self.primitive.name)

    @property
    def row(self) -> Row:
        """Returns what is known of the primitive."""
        return row_of(self.name)


# --- how axes are carried


def _whole(find: Callable[[dict[str, Any], int], int | None]) -> Move:
    """Moves a dimension as a whole, from ``(params, dim) -> dim of the result``."""

    def move(
        axis: Axis, params: dict[str, Any], position: int, old: Shape, new: Shape
    ) -> Axis | None:
        del position
        dim = find(params, axis.dim)
        return axis._replace(dim=dim) if dim is not None and new[dim] == old[axis.dim] else None

    return move


def _reshaped(
    axis: Axis, params: dict[str, Any], position: int, old: Shape, new: Shape
) -> Axis | None:
    del position
    order = params.get("dimensions") if "new_sizes" in params else None
    if order is not None:  # transposed before it is reshaped
        axis, old = axis._replace(dim=order.index(axis.dim)), tuple(old[d] for d in order)
    stride = axis.inner * math.prod(old[axis.dim + 1 :])
    for dim in range(len(new)):
        below = math.prod(new[dim + 1 :])
        if stride % below:
            continue
        inner = stride // below
        if new[dim] == 1 == axis.size and inner == 1:
            return Axis(dim, 1, 1)
        if axis.size > 1 and inner < new[dim] and new[dim] % (inner * axis.size) == 0:
            return Axis(dim, inner, axis.size)
    return None


def _gathered(
    axis: Axis, params: dict[str, Any], position: int, old: Shape, new: Shape
) -> Axis | None:
    """Follows an axis of what is read, whose window may be as wide, or of the positions."""
    numbers = params["dimension_numbers"]
    if position:
        free = [d for d in range(len(new)) if d not in numbers.offset_dims]
        return None if axis.dim == len(old) - 1 else axis._replace(dim=free[axis.dim])
    alone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if axis.dim in alone:
        return None
    dim = int(numbers.offset_dims[axis.dim - sum(d < axis.dim for d in alone)])
    return axis._replace(dim=dim) if new[dim] == old[axis.dim] else None


def _window(params: dict[str, Any], dim: int) -> int | None:
    keeps = (
        params["window_dimensions"][dim] == 1
        and params["window_strides"][dim] == 1
        and tuple(params["padding"][dim]) == (0, 0)
        and params["base_dilation"][dim] == 1
    )
    return dim if keeps else None


def _same(params: dict[str, Any], dim: int) -> int:
    """Keeps a dimension; cut or strided it is shorter, which is seen."""
    del params
    return dim


def _but(key: str) -> Callable[[dict[str, Any], int], int | None]:
    """Keeps a dimension that is not the one, or one of those, that the operation runs along."""

    def find(params: dict[str, Any], dim: int) -> int | None:
        own = params[key]
        return None if dim in (own if isinstance(own, tuple) else (own,)) else dim

    return find


_REDUCED = _whole(
    lambda p, dim: None if dim in p["axes"] else dim - sum(a < dim for a in p["axes"])
)
_WINDOW = _whole(_window)
_CUT = _whole(_same)


# --- what linear operations contract


def _conv(params: dict[str, Any], ranks: Sequence[int], data: int) -> Contraction:
    del ranks
    spec = params["dimension_numbers"]
    return Contraction(
        data=data,
        kernel=1 - data,
        contracted=((spec.lhs_spec[1], spec.rhs_spec[1]),),
        kept={spec.lhs_spec[0]: spec.out_spec[0]},
        made={spec.out_spec[1]: spec.rhs_spec[0]},
    )


def _dot(params: dict[str, Any], ranks: Sequence[int], data: int) -> Contraction:
    contract, batch = params["dimension_numbers"]
    # The result has the batch dimensions, the free ones of the left, those of the right.
    position: list[dict[int, int]] = [{}, {}]
    count = len(batch[0])
    for side in (0, 1):
        position[side].update({d: i for i, d in enumerate(batch[side])})
        for d in range(ranks[side]):
            if d not in batch[side] and d not in contract[side]:
                position[side][d] = count
                count += 1
    return Contraction(
        data=data,
        kernel=1 - data,
        contracted=tuple(zip(contract[data], contract[1 - data], strict=True)),
        kept=position[data],
        made={out: d for d, out in position[1 - data].items()},
    )


def _falls(params: dict[str, Any], varying: list[int], constants: Sequence[Any]) -> bool:
    """Tells that the exponent is a negative constant."""
    exponent = params["y"] if "y" in params else constants[-1]
    return exponent is not None and bool(exponent < 0)


TABLE = (
    # what holds other operations; names differ between versions of JAX
    Row("jit", "call"),
    Row("pjit", "call"),
    Row("closed_call", "call"),
    Row("core_call", "call"),
    Row("remat", "gradient"),
    Row("remat2", "gradient"),
    Row("checkpoint", "gradient"),
    Row("custom_jvp_call", "gradient"),
    Row("custom_vjp_call", "gradient"),
    Row("custom_vjp_call_jaxpr", "gradient"),
    Row("scan", "loop"),
    Row("while", "loop"),
    Row("cond", "loop"),
    Row("shard_map", "loop"),
    # over positions and features
    Row("dot_general", "linear", contract=_dot),
    Row("conv_general_dilated", "linear", contract=_conv),
    Row("reduce_sum", "pool", "all", _REDUCED, reduces=True),
    Row("reduce_window_sum", "pool", "all", _WINDOW, reduces=True),
    Row("cumsum", "pool", "all", _whole(_but("axis"))),
    Row("reduce_max", "max", "all", _REDUCED, reduces=True, pieces=True),
    Row("reduce_min", "max", "all", _REDUCED, pieces=True),
    Row("reduce_window_max", "max", "all", _WINDOW, fills=True, pieces=True),
    # layout
    Row("reshape", "layout", "all", _reshaped, "through", keeps=True),
    Row("squeeze", "layout", "all", _reshaped, "through", keeps=True),
    Row(
        "transpose", "layout", "all", _whole(lambda p, dim: int(p["permutation"].index(dim))),
        "through", keeps=True,
    ),
    Row(
        "broadcast_in_dim", "layout", "all",
        _whole(lambda p, dim: int(p["broadcast_dimensions"][dim])), "through", keeps=True,
    ),
    Row("rev", "layout", "all", _whole(_but("dimensions")), keeps=True),
    Row("slice", "layout", "all", _CUT),
    Row("split", "layout", "all", _whole(_but("axis"))),
    Row("concatenate", "layout", "all", _whole(_but("dimension")), fills=True),
    Row("stack", "layout", "all", _whole(lambda p, dim: dim + (dim >= p["axis"])), fills=True),
    Row(
        "unstack", "layout", "all",
        _whole(lambda p, dim: None if dim == p["axis"] else dim - (dim > p["axis"])),
    ),
    Row("tile", "layout", "all", lambda axis, *_: axis, "through", keeps=True),
    Row(
        "pad", "layout", "all",
        _whole(lambda p, dim: dim if tuple(p["padding_config"][dim]) == (0, 0, 0) else None),
        fills=True,
    ),
    Row("gather", "indexed", "first", _gathered, fills=True),
    Row("dynamic_slice", "indexed", "first", _CUT),
    # element by element, of several values
    Row("add", "sum", "all", affine="shift"),
    Row("add_any", "sum", "all", affine="shift"),
    Row("sub", "sum", affine="shift"),
    Row("mul", "product", "product", affine="scale"),
    Row("div", "product", "all", affine="scale", inverts=lambda p, varying, _: varying == [1]),
    Row("max", "choice", "any", pieces=True),
    Row("min", "choice", "all", pieces=True),
    Row("select_n", "choice", "chosen", fills=True, pieces=True),
    # element by element, of one value; the value itself
    Row("name", "mark", "first", still=True),
    Row("convert_element_type", "function", "first", affine="through", still=True),
    Row("copy", "function", "first", still=True),
    Row("copy_p", "function", "first", still=True),
    Row("pcast", "function", "first", affine="through", still=True),
    Row("pvary", "function", "first", affine="through", still=True),
    Row("reduce_precision", "function", "first", still=True),
    Row("sharding_constraint", "function", "first", still=True),
    Row("stop_gradient", "function", "first", still=True),
    # element by element, of one value
    Row("abs", "function", "always", pieces=True),
    Row("acos", "function"),
    Row("acosh", "function"),
    Row("and", "function", pieces=True),
    Row("asin", "function"),
    Row("asinh", "function"),
    Row("atan", "function"),
    Row("atan2", "function"),
    Row("atanh", "function"),
    Row("cbrt", "function", "first"),
    Row("ceil", "function", pieces=True),
    Row("clamp", "choice", "first", pieces=True),
    Row("cos", "function"),
    Row("cosh", "function"),
    Row("eq", "function", pieces=True),
    Row("erf", "function", "first"),
    Row("erf_inv", "function"),
    Row("erfc", "function"),
    Row("exp", "function", "always"),
    Row("exp2", "function", "always"),
    Row("expm1", "function", "first"),
    Row("floor", "function", "first", pieces=True),
    Row("ge", "function", compares=True, pieces=True),
    Row("gt", "function", compares=True, pieces=True),
    Row("integer_pow", "function", "power", inverts=_falls),
    Row("is_finite", "function", pieces=True),
    Row("le", "function", pieces=True),
    Row("log", "function"),
    Row("log1p", "function", "first"),
    Row("logistic", "function", "always"),
    Row("lt", "function", pieces=True),
    Row("ne", "function", pieces=True),
    Row("neg", "function", affine="flip"),
    Row("not", "function", pieces=True),
    Row("or", "function", pieces=True),
    Row("pow", "function", inverts=_falls),
    Row("rem", "function", pieces=True),
    Row("round", "function", "first", pieces=True),
    Row("rsqrt", "function", "always", inverts=lambda *_: True),
    Row("sign", "function", "first", pieces=True),
    Row("sin", "function"),
    Row("sinh", "function", "first"),
    Row("sqrt", "function", "always"),
    Row("square", "function", "always"),
    Row("tan", "function"),
    Row("tanh", "function", "first"),
    Row("xor", "function", pieces=True),
)  # fmt: skip

_ROWS: Mapping[str, Row] = {row.name: row for row in TABLE}


def row_of(name: str) -> Row:
    """Returns what is known of a primitive; of role ``unknown`` if it is in no row."""
    return _ROWS.get(name) or Row(name, "unknown")
