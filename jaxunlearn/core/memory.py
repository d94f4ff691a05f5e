"""Memory of the host that a process keeps, instead of asking for it at each step."""

import ctypes
import os
import sys

# of mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_DECIDED = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX")


def keep_memory() -> bool:
    """Makes the C library keep memory that was freed, for the next step of a program on the CPU.

    XLA asks for the temporary memory of a program at each call. The GNU C library maps large
    blocks anew each time, and each first touch of a page of 4 KB is a fault that the kernel
    answers: a training step of a ResNet-18 with 92,000 of them takes a sixth longer. From this
    call on large blocks, too, come from one heap, which never shrinks: the process holds the most
    that it ever needed until it ends.

    The commands call it as they start; a script of yours may, before its first computation.

    Returns:
      Whether it does so: not with another C library or system, nor where the environment says how
      memory is to be had (``GLIBC_TUNABLES`` of ``malloc``, ``MALLOC_ARENA_MAX`` and the like).

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
