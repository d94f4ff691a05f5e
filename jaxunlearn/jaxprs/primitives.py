"""The primitives of JAX, a row each: all that is known of them stands here.

Steps, signs, axes, units and relevance read the table by :attr:`Op.row`; an operation whose
primitive is in no row is refused where relevance meets it.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
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
    "call", "gradient", "loop", "same", "linear", "bilinear", "mix", "pool", "max", "order",
    "factors", "layout", "indexed", "write", "sum", "product", "choice", "function", "mark",
    "decision", "unknown",
]  # fmt: skip
Sign = Literal["always", "all", "any", "first", "power", "product", "chosen"]
Move = Callable[[Axis, dict[str, Any], int, Shape, Shape], Axis | None]


class Row(NamedTuple):
    """A primitive, and all that is known of it.

    Attributes:
      name: of the primitive.
      role: ``call``, which runs what it holds; ``gradient``, a call that has a say in
        derivatives; ``loop``, whose body is not run once as it stands; ``same``, whose results
        are its operands; ``linear``, with a kernel; ``bilinear``, linear in each of its first
        two operands; ``mix``, linear without a kernel; ``pool``, a sum over positions; ``max``,
        an extreme over positions; ``order``, which picks elements along one dimension by their
        size; ``factors``, a product over positions; ``layout``, which moves, copies or drops
        elements; ``indexed``, a layout with positions among its operands; ``write``, which
        puts elements of its third operand at positions of its first; element by element
        ``sum``, ``product``, ``choice`` (of one operand), ``function`` (of one value), ``mark``
        (a value's name); and ``decision``, whose results are truths or places: relevance takes
        them for constants, unless nothing else leads to the data.
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
      indices: which operands are positions, or choose among the others.
      fixed: ``params -> how many of the first operands`` must be constant.
      pieces: linear or constant in pieces, with kinks or steps where they meet.
      kink: what it does to a gradient: ``jump``; ``bound``, a kink unless the bound guards a root
        or a division; ``guards``, which such a bound is for; ``rare``, true almost nowhere.
      stops: still, but for its derivative or its last digits.
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
    indices: slice | None = None
    fixed: Callable[[dict[str, Any]], int] | None = None
    pieces: bool = False
    kink: Literal["jump", "bound", "guards", "rare"] | None = None
    stops: bool = False
    reduces: bool = False
    compares: bool = False
    inverts: Callable[[dict[str, Any], list[int], Sequence[Any]], bool] | None = None

    @property
    def elementwise(self) -> bool:
        """Tells that each element of the result comes from its place in the operands."""
        roles = ("sum", "product", "choice", "function", "mark", "decision")
        return self.role in roles and self.axis is None

    @property
    def smooth(self) -> bool:
        """Tells that the result is no linear function of its operand, and has no kinks."""
        linear = self.pieces or self.still or self.compares or self.affine is not None
        return self.role == "function" and not linear

    @property
    def moves(self) -> bool:
        """Tells that relevance of the result lies at elements of the operand."""
        return self.role in ("layout", "indexed", "write")


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

    @property
    def values(self) -> list[int]:
        """Returns the positions of the operands that are values, and no positions or choices."""
        places = range(len(self.ins))
        indices = self.row.indices
        return [i for i in places if indices is None or i not in places[indices]]

    def decides(self, place: int, data: Collection[int]) -> bool:
        """Tells that a result is a truth or a place, where some values are data.

        The results of a sort are its operands, one by one; the second one of the largest
        elements is where they were.
        """
        if self.row.role == "order":
            sorts = len(self.ins) == len(self.outs)
            return self.ins[place] not in data if sorts else place > 0
        return self.row.role == "decision"


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
    if not math.prod(new):
        return None  # where there is no element, there is no axis
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
    if axis.dim in numbers.operand_batching_dims:
        free = [d for d in range(len(new)) if d not in numbers.offset_dims]
        along = numbers.operand_batching_dims.index(axis.dim)
        return axis._replace(dim=free[numbers.start_indices_batching_dims[along]])
    alone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if axis.dim in alone:
        return None
    dim = int(numbers.offset_dims[axis.dim - sum(d < axis.dim for d in alone)])
    return axis._replace(dim=dim) if new[dim] == old[axis.dim] else None


def _scattered(
    axis: Axis, params: dict[str, Any], position: int, old: Shape, new: Shape
) -> Axis | None:
    """Follows an axis of what is written to, of the positions, or of what is written."""
    numbers = params["dimension_numbers"]
    alone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    batches = dict(
        zip(numbers.scatter_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    )
    if position == 0:
        moved = axis.dim in numbers.scatter_dims_to_operand_dims
        return None if moved else axis
    if position == 1:
        dim = batches.get(axis.dim)
    elif axis.dim in numbers.update_window_dims:
        whole = [d for d in range(len(new)) if d not in alone]
        dim = whole[numbers.update_window_dims.index(axis.dim)]
    else:
        free = [d for d in range(len(old)) if d not in numbers.update_window_dims]
        dim = batches.get(free.index(axis.dim))
    return axis._replace(dim=dim) if dim is not None and new[dim] == old[axis.dim] else None


def _window(params: dict[str, Any], dim: int) -> int | None:
    keeps = (
        params["window_dimensions"][dim] == 1
        and params["window_strides"][dim] == 1
        and tuple(params["padding"][dim]) == (0, 0)
        and params["base_dilation"][dim] == 1
    )
    return dim if keeps else None


def _solved(
    axis: Axis, params: dict[str, Any], position: int, old: Shape, new: Shape
) -> Axis | None:
    """Keeps the dimensions in front of the matrices, and the right sides beside each other."""
    del position
    sides = axis.dim == len(old) - (1 if params.get("left_side", True) else 2)
    return axis if old == new and (axis.dim < len(old) - 2 or sides) else None


def _largest(
    axis: Axis, params: dict[str, Any], position: int, old: Shape, new: Shape
) -> Axis | None:
    del position, new
    own = params.get("axis", params.get("reduction_dimension", -1))
    return None if axis.dim == own % len(old) else axis


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
    if data == 1:
        return Contraction(
            data=1,
            kernel=0,
            contracted=((spec.rhs_spec[1], spec.lhs_spec[1]),),
            kept={spec.rhs_spec[0]: spec.out_spec[1]},
            made={spec.out_spec[0]: spec.lhs_spec[0]},
        )
    return Contraction(
        data=0,
        kernel=1,
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


def _ragged(
    axis: Axis, params: dict[str, Any], position: int, old: Shape, new: Shape
) -> Axis | None:
    """Follows a dimension of the rows of a product with a kernel for each group of rows."""
    (contracted, _), (batch, _) = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    if position or batch or axis.dim in contracted or len(old) != len(new):
        return None
    dim = axis.dim - sum(d < axis.dim for d in contracted)
    return axis._replace(dim=dim) if new[dim] == old[axis.dim] else None


TABLE = (
    # what holds other operations; names differ between versions of JAX
    Row("jit", "call"),
    Row("pjit", "call"),
    Row("closed_call", "call"),
    Row("core_call", "call"),
    Row("call", "call"),
    Row("remat", "gradient"),
    Row("remat2", "gradient"),
    Row("checkpoint", "gradient"),
    Row("custom_jvp_call", "gradient"),
    Row("custom_vjp_call", "gradient"),
    Row("custom_vjp_call_jaxpr", "gradient"),
    Row("composite", "gradient"),
    Row("custom_vmap_call", "gradient"),
    Row("custom_partitioning", "gradient"),
    Row("scan", "loop"),
    Row("while", "loop"),
    Row("cond", "loop"),
    Row("shard_map", "loop"),
    Row("optimization_barrier", "same"),
    # over positions and features
    Row("dot_general", "linear", contract=_dot),
    Row("conv_general_dilated", "linear", contract=_conv),
    Row("ragged_dot_general", "bilinear", axis=_ragged, indices=slice(2, None)),
    Row("real", "mix", axis=_CUT),
    Row("imag", "mix", axis=_CUT),
    Row("complex", "mix", axis=_CUT),
    Row(
        "fft", "mix",
        axis=lambda axis, p, _, old, new: (
            axis if axis.dim < len(old) - len(p["fft_lengths"]) else None
        ),
    ),
    Row("scatter-add", "mix", "all", _scattered, indices=slice(1, 2)),
    Row("scatter-sub", "mix", axis=_scattered, indices=slice(1, 2)),
    Row("triangular_solve", "mix", axis=_solved, fixed=lambda p: 1),
    Row("tridiagonal_solve", "mix", axis=_solved, fixed=lambda p: 3),
    Row("custom_linear_solve", "mix", axis=_CUT, fixed=lambda p: sum(p["const_lengths"])),
    Row("select_and_scatter_add", "mix", "first", indices=slice(1, 2)),
    Row("reduce_sum", "pool", "all", _REDUCED, reduces=True),
    Row("reduce_window_sum", "pool", "all", _WINDOW, reduces=True),
    Row("cumsum", "pool", "all", _whole(_but("axis"))),
    Row("reduce_max", "max", "all", _REDUCED, reduces=True, pieces=True, kink="jump"),
    Row("reduce_min", "max", "all", _REDUCED, reduces=True, pieces=True, kink="jump"),
    Row("reduce_window_max", "max", "all", _WINDOW, fills=True, pieces=True, kink="jump"),
    Row("reduce_window_min", "max", "all", _WINDOW, fills=True, pieces=True, kink="jump"),
    Row("cummax", "order", "all", _whole(_but("axis")), pieces=True, kink="jump"),
    Row("cummin", "order", "all", _whole(_but("axis")), pieces=True, kink="jump"),
    Row("sort", "order", "all", _whole(_but("dimension")), pieces=True, kink="jump"),
    Row("top_k", "order", "all", _largest, pieces=True, kink="jump"),
    Row("approx_top_k", "order", "all", _largest, pieces=True, kink="jump"),
    Row("cumprod", "factors", "all", _whole(_but("axis"))),
    Row("reduce_prod", "factors", "all", _REDUCED),
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
    Row("gather", "indexed", "first", _gathered, fills=True, indices=slice(1, None)),
    Row("dynamic_slice", "indexed", "first", _CUT, indices=slice(1, None)),
    Row("dynamic_update_slice", "indexed", axis=_CUT, fills=True, indices=slice(2, None)),
    Row("select_and_gather_add", "indexed", "first", indices=slice(1, 2)),
    Row("scatter", "write", axis=_scattered, fills=True, indices=slice(1, 2)),
    Row(
        "scatter-max", "write", axis=_scattered, fills=True, indices=slice(1, 2),
        pieces=True, kink="jump",
    ),
    Row(
        "scatter-min", "write", axis=_scattered, fills=True, indices=slice(1, 2),
        pieces=True, kink="jump",
    ),
    Row("scatter-mul", "write", axis=_scattered, fills=True, indices=slice(1, 2)),
    Row("iota", "layout", "always"),
    # truths and places
    Row("argmax", "decision", axis=_REDUCED, pieces=True, kink="jump"),
    Row("argmin", "decision", axis=_REDUCED, pieces=True, kink="jump"),
    Row("reduce_and", "decision", axis=_REDUCED, pieces=True),
    Row("reduce_or", "decision", axis=_REDUCED, pieces=True),
    Row("reduce_xor", "decision", axis=_REDUCED, pieces=True),
    # element by element, of several values
    Row("add", "sum", "all", affine="shift"),
    Row("add_any", "sum", "all", affine="shift"),
    Row("sub", "sum", affine="shift"),
    Row("mul", "product", "product", affine="scale"),
    Row("div", "product", "all", affine="scale", inverts=lambda p, varying, _: varying == [1]),
    Row("max", "choice", "any", pieces=True, kink="bound"),
    Row("min", "choice", "all", pieces=True, kink="jump"),
    Row("select_n", "choice", "chosen", fills=True, indices=slice(1), pieces=True),
    # element by element, of one value; the value itself
    Row("name", "mark", "first", still=True),
    Row("convert_element_type", "function", "first", affine="through", still=True),
    Row("copy", "function", "first", still=True),
    Row("copy_p", "function", "first", still=True),
    Row("pcast", "function", "first", affine="through", still=True),
    Row("pvary", "function", "first", affine="through", still=True),
    Row("reduce_precision", "function", "first", still=True, stops=True),
    Row("sharding_constraint", "function", "first", still=True),
    Row("stop_gradient", "function", "first", still=True, stops=True),
    Row("device_put", "function", "first", still=True),
    Row("layout_constraint", "function", "first", still=True),
    Row("reshard", "function", "first", still=True),
    Row("with_memory_space_constraint", "function", "first", still=True),
    Row("xla_metadata_value", "function", "first", still=True),
    # element by element, of one value
    Row("abs", "function", "always", pieces=True, kink="bound"),
    Row("acos", "function"),
    Row("acosh", "function"),
    Row("and", "function", pieces=True),
    Row("asin", "function"),
    Row("asinh", "function"),
    Row("atan", "function"),
    Row("atan2", "function"),
    Row("atanh", "function"),
    Row("bessel_i0e", "function", "always"),
    Row("bessel_i1e", "function"),
    Row("cbrt", "function", "first"),
    Row("ceil", "function", pieces=True, kink="jump"),
    Row("clamp", "choice", "first", pieces=True, kink="jump"),
    Row("clz", "function", pieces=True),
    Row("conj", "function"),
    Row("cos", "function"),
    Row("cosh", "function"),
    Row("digamma", "function"),
    Row("eq", "decision", pieces=True, kink="rare"),
    Row("eq_to", "decision", pieces=True),
    Row("erf", "function", "first"),
    Row("erf_inv", "function"),
    Row("erfc", "function"),
    Row("exp", "function", "always"),
    Row("exp2", "function", "always"),
    Row("expm1", "function", "first"),
    Row("floor", "function", "first", pieces=True, kink="jump"),
    Row("ge", "decision", compares=True, pieces=True),
    Row("gt", "decision", compares=True, pieces=True),
    Row("igamma", "function"),
    Row("igammac", "function"),
    Row("integer_pow", "function", "power", inverts=_falls),
    Row("is_finite", "decision", pieces=True, kink="rare"),
    Row("le", "decision", pieces=True),
    Row("le_to", "decision", pieces=True),
    Row("lgamma", "function"),
    Row("log", "function", kink="guards"),
    Row("log1p", "function", "first"),
    Row("logistic", "function", "always"),
    Row("lt", "decision", pieces=True),
    Row("lt_to", "decision", pieces=True),
    Row("mulhi", "function", pieces=True),
    Row("ne", "decision", pieces=True, kink="rare"),
    Row("neg", "function", affine="flip"),
    Row("nextafter", "function", pieces=True),
    Row("not", "function", pieces=True),
    Row("or", "function", pieces=True),
    Row("polygamma", "function"),
    Row("population_count", "function", pieces=True),
    Row("pow", "function", inverts=_falls, kink="guards"),
    Row("regularized_incomplete_beta", "function"),
    Row("rem", "function", pieces=True, kink="jump"),
    Row("round", "function", "first", pieces=True, kink="jump"),
    Row("rsqrt", "function", "always", inverts=lambda *_: True, kink="guards"),
    Row("shift_left", "function", pieces=True),
    Row("shift_right_arithmetic", "function", pieces=True),
    Row("shift_right_logical", "function", pieces=True),
    Row("sign", "function", "first", pieces=True, kink="jump"),
    Row("sin", "function"),
    Row("sinh", "function", "first"),
    Row("sqrt", "function", "always", kink="guards"),
    Row("square", "function", "always"),
    Row("tan", "function"),
    Row("tanh", "function", "first"),
    Row("xor", "function", pieces=True),
    Row("zeta", "function"),
)  # fmt: skip

REFUSED: Mapping[str, str] = {
    name: reason
    for reason, names in {
        "a factorisation, whose parts are no shares of what is factorised": (
            "cholesky cholesky_update eig eigh geqp3 geqrf hessenberg householder_product lu "
            "lu_pivots_to_permutation ormqr qr schur svd symmetric_product tridiagonal"
        ),
        "its results are random": (
            "philox2x32 philox4x32 random_bits random_clone random_fold_in random_gamma "
            "random_seed random_split random_unwrap random_wrap rng_bit_generator rng_uniform "
            "threefry2x32 threefry4x32"
        ),
        "it runs on several devices at once": (
            "all_gather all_gather_done all_gather_invariant all_gather_reduced "
            "all_gather_reduced_start all_gather_start all_to_all all_to_all_done "
            "all_to_all_start axis_index core_map pbroadcast pbroadcast_done pbroadcast_start "
            "pmax pmin ppermute ppermute_done ppermute_start precv preduced psend psum "
            "psum_done psum_invariant psum_invariant_start psum_start ragged_all_to_all "
            "reduce_scatter reduce_scatter_done reduce_scatter_start reduced_vary_cast_p "
            "shard_map unreduced_psum unreduced_psum_start unreduced_reduce_scatter "
            "unreduced_reduce_scatter_start vary_unreduced_cast_p"
        ),
        "it leaves the program": (
            "buffer_callback call_exported check cudnn_fusion debug_callback debug_print "
            "ffi_call inspect_sharding io_callback pallas_call pure_callback"
        ),
        "it reads or writes memory": (
            "accum_grad_in_ref addupdate box_get box_set broadcast_to create_linear empty_ref "
            "free_ref freeze get log_extend log_read new_box new_log new_ref pin run_scoped "
            "run_state swap unpin"
        ),
        "it is part of a derivative, or of a program that is being transformed": (
            "call_hi_primitive call_hi_primitive_linearized custom_jvp_call_jaxpr custom_lin "
            "dce_sink eval_jaxpr igamma_grad_a linear_call remat_opt "
            "select_and_scatter stage tie zeros_like"
        ),
        "a kernel of one platform": (
            "dot_product_attention_bwd dot_product_attention_bwd_wrapper "
            "dot_product_attention_fp8_bwd dot_product_attention_fp8_bwd_wrapper "
            "dot_product_attention_fp8_fwd dot_product_attention_fp8_fwd_wrapper "
            "dot_product_attention_fwd dot_product_attention_fwd_wrapper scaled_dot "
            "scaled_matmul scaled_matmul_wrapper"
        ),
        "a loop that runs as often as its data says": "while",
        "a loop of more than 20,000 operations": "scan",
        "its function is not one sum, maximum or minimum": "reduce reduce_window",
        "it reads bits, not numbers": "bitcast_convert_type from_edtype to_edtype",
        "a logarithm of sums, each of other elements": "cumlogsumexp",
        "it makes values from none": (
            "after_all create_token dim_as_value dimension_size empty empty2 "
            "iota_2x32_shape platform_index shape_assertion unreachable"
        ),
    }.items()
    for name in names.split()
}
"""Primitives that relevance does not cross, and why."""

_ROWS: Mapping[str, Row] = {row.name: row for row in TABLE}


def row_of(name: str) -> Row:
    """Returns what is known of a primitive; of role ``unknown`` if it is in no row."""
    return _ROWS.get(name) or Row(name, "unknown")


# What operations mean for the memory of a program

# computed once, not within each operation that reads them
COSTLY = {
    "atan2", "cbrt", "cos", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "lgamma",
    "log", "log1p", "logistic", "pow", "sin", "tan", "tanh",
}  # fmt: skip
# the same elements in another order or shape: no memory of their own
VIEWS = {"reshape", "squeeze", "transpose", "name", "copy", "copy_p", "stop_gradient"}
# what is read element by element, but written whole
READERS = {"gather", "dynamic_slice", "argmax", "argmin"}
MOVED = {"broadcast_in_dim", "slice", "rev", "pad", "concatenate", "iota", "split"}
DRAWN = {"random_bits", "random_wrap", "random_unwrap", "random_fold_in", "random_seed"}
RUNS_AGAIN = {"while", "scan"}
