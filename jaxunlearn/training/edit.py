"""Methods that edit a model once: all is computed before the loop, and no step is done."""

from collections.abc import Callable

from jaxunlearn.core.types import Key, Model, Needs, Preparation, Sets, Unlearner, Variables

Edit = Callable[..., Variables]
"""``variables, sets, key -> variables``, compiled; with a preparation also what it prepared."""


def edit(
    change: Edit,
    needs: Needs,
    *,
    model: Model | None = None,
    prepare: Preparation | None = None,
    forgets: tuple[str, ...] = ("class", "items"),
    name: str = "the method",
) -> Unlearner:
    """Makes a method of one function that returns the new variables.

    Fisher forgetting, in short::

        def change(variables, sets, key):
            importance = ...  # of sets.retain
            return add_noise(variables, importance, key)

        edit(change, Needs(retain=True), model=model)

    Args:
      change: reads whole sets, chunk by chunk (``training.curvature.sum_over``).
      needs: the sets that it reads.
      model, prepare, forgets, name: see :class:`jaxunlearn.core.types.Unlearner`.
    """

    def init(variables: Variables, sets: Sets, key: Key, *prepared: object) -> Variables:
        return change(variables, sets, key, *prepared)

    return Unlearner(
        init, None, lambda state: state, needs._replace(once=True), prepare, model=model,
        forgets=forgets, name=name,
    )  # fmt: skip
