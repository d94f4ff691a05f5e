"""What a process asks of the host: memory that it keeps, and one thread for small fits."""

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")

# of mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_DECIDED = (
    "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)  # fmt: skip


def keep_memory() -> bool:
    """Makes the C library keep memory that was freed, for the next step of a program on the CPU.

    XLA asks for the temporary memory of a program at each call. The GNU C library maps large
    blocks anew each time, and each first touch of a page of 4 KB is a fault that the kernel
    answers; a training step that is a program of its own spends a seventh of its time on them
    (docs/speed.md). From this call on large blocks, too, come from one heap that all threads share
    and that never shrinks: the process holds the most that it ever needed until it ends.

    ``jaxunlearn run``, ``bench`` and ``metrics`` call it as they start; a script of yours may,
    before it imports JAX.

    Returns:
      Whether the GNU C library accepted it. It is not asked on other systems, nor where the
      environment says how memory is to be had (``GLIBC_TUNABLES`` of ``malloc``,
      ``MALLOC_ARENA_MAX`` and the like). With another allocator in its place nothing changes.

    Source: mallopt(3): ``M_MMAP_MAX`` 0, ``M_TRIM_THRESHOLD`` -1, ``M_ARENA_MAX`` 1.
    """
    tuned = "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or tuned or any(one in os.environ for one in _DECIDED):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])


def on_one_thread(fit: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """Makes a function that fits something small with scikit-learn run on one thread.

    Its products are too small for several: no faster alone, and many times slower where other
    programs use the machine, for the threads wait for each other.
    """

    @functools.wraps(fit)
    def limited(*args: _Given.args, **options: _Given.kwargs) -> _Found:
        import sklearn.linear_model  # noqa: F401  # what is loaded later would not be limited
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return fit(*args, **options)

    return limited
