"""Prints every exact check, as a Markdown table."""

import jax
import numpy as np

from tests.methods.exact import checks


def _brief(value):
    if isinstance(value, str | bool | np.bool_):
        return str(value)
    values = np.ravel(np.asarray(value))
    return ", ".join(f"{one:.7g}" for one in values[:4]) + (", ..." if values.size > 4 else "")


def main():
    """Runs them in double precision, one method after the other."""
    print("| method | check | got | wanted | largest difference |")
    print("| --- | --- | --- | --- | --- |")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        for name, check in sorted(checks().items()):
            for what, got, wanted, _ in check():
                exact = isinstance(wanted, str | bool | np.bool_)
                far = "" if exact else f"{np.max(np.abs(np.asarray(got) - np.asarray(wanted))):.1g}"
                print(f"| {name} | {what} | {_brief(got)} | {_brief(wanted)} | {far} |")


main()
