"""Training: objectives, descent, optimizers and their masks, and memory that it keeps."""

from jaxunlearn.core.host import keep_memory
from jaxunlearn.core.types import Batches, Info
from jaxunlearn.training.descent import Context, accuracy, apply_update, cross_entropy, descent
from jaxunlearn.training.optimizers import make_augment, make_optimizer, matching, only, part_mask
from jaxunlearn.training.per_example import per_example_gradients

__all__ = [
    "Batches",
    "Context",
    "Info",
    "accuracy",
    "apply_update",
    "cross_entropy",
    "descent",
    "keep_memory",
    "make_augment",
    "make_optimizer",
    "matching",
    "only",
    "part_mask",
    "per_example_gradients",
]
