"""The primitives by what they do to relevance."""

from jaxunlearn.attribution.flatten import names

__all__ = [
    "ADDITIONS",
    "AFFINE",
    "CHOICES",
    "ELEMENTWISE",
    "INDEXED",
    "LAYOUT",
    "LINEAR",
    "LOSING",
    "MAXIMA",
    "PRODUCTS",
    "SCALING",
    "SHAPED",
    "SUBTRACTION",
    "SUMS",
    "THROUGH",
]

LINEAR = names("dot_general conv_general_dilated")
SUMS = names("reduce_sum reduce_window_sum cumsum")
MAXIMA = names("reduce_max reduce_min reduce_window_max")
ADDITIONS = names("add add_any")
SUBTRACTION = names("sub")
PRODUCTS = names("mul div")
CHOICES = names("max min select_n")

INDEXED = names("gather dynamic_slice")
"""Layouts whose further operands are positions."""

LAYOUT = INDEXED | names(
    "reshape transpose squeeze slice concatenate pad broadcast_in_dim rev split expand_dims"
)

SHAPED = names("reshape squeeze broadcast_in_dim expand_dims transpose")
"""Layouts that lose nothing."""

LOSING = names("concatenate gather pad reduce_window_max select_n")
"""Of what these move, a part may be constant, or padding."""

ELEMENTWISE = names(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge "
    "gt integer_pow is_finite le log log1p logistic lt max min mul name ne neg not or pcast pow "
    "pvary reduce_precision rem round rsqrt select_n sharding_constraint sign sin sinh sqrt "
    "square stop_gradient sub tan tanh xor"
)

AFFINE = names("add add_any sub mul div neg")
"""With constants, what can be folded into a linear operation before it."""

SCALING = names("mul div")

THROUGH = names("convert_element_type reshape transpose squeeze broadcast_in_dim pcast pvary")
"""What may lie between a linear operation and what is folded into it."""
