"""Eight virtual devices, no implicit promotion, kept programs: set before JAX is imported."""

import gc
import hashlib
import os
import pathlib
import platform
import threading
from importlib.metadata import version

# compiling is most of what tests do: code that is optimised less is there in half the time
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
# one piece of a small program at a time
FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]
# the older emitters take half as long again; a flag that XLA does not know ends the process
if version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# fewer threads than twice the devices can dead-lock a collective on a small machine
os.environ.setdefault("NPROC", "32")
# threads of NumPy and scikit-learn that wait for each other cost workers more than they bring
os.environ.setdefault("OMP_NUM_THREADS", "1")
# memory that is given back to the system is asked for again at once: a part in twenty of the time
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 30))
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 25))
os.environ.setdefault("MALLOC_TOP_PAD_", str(1 << 26))
# the commands that tests start read the package compiled
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def machine():
    """Identifies the processor, which JAX leaves out of the key of a compiled program."""
    about = {platform.processor()}
    cores = pathlib.Path("/proc/cpuinfo")
    if cores.exists():
        told = ("model name", "flags", "Features", "CPU part")
        about |= {line for line in cores.read_text().splitlines() if line.startswith(told)}
    digest = hashlib.sha256(repr(sorted(about)).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"


# programs are kept between runs, for all workers and the commands that tests start; jax knows
# them by program, flags and version, and half-written ones are compiled again (pyproject.toml)
ROOT = pathlib.Path(__file__).parent.parent
PROGRAMS = ROOT / ".pytest_cache" / "d" / "programs" / machine()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
MOST_BYTES = 1_000_000_000
MOST_MAPS = 12_000

import jax
import pytest
from jax._src.interpreters import mlir

# most programs of tests are small: half of the time to write one goes into a context of its own
fresh_context, context = getattr(mlir, "make_ir_context", None), threading.local()


def shared_context():
    """Returns a context that fifty programs share; what they intern goes with it."""
    if getattr(context, "left", 0) < 1:
        context.kept, context.left = fresh_context(), 50
    context.left -= 1
    return context.kept


if fresh_context is not None:
    mlir.make_ir_context = shared_context

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_sessionstart(session):
    """Forgets the kept programs that were used least recently, in the main process alone."""
    if hasattr(session.config, "workerinput"):
        return
    found = [(path, path.stat()) for path in PROGRAMS.parent.rglob("*-cache")]
    found.sort(key=lambda row: max(row[1].st_atime, row[1].st_mtime))
    surplus = sum(about.st_size for _, about in found) - MOST_BYTES
    for path, about in found:
        if surplus <= 0:
            break
        path.unlink(missing_ok=True)
        surplus -= about.st_size


def pytest_collection_finish(session):
    """Looks less often for garbage, which else takes a tenth of the time: most objects stay."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded data sets of the tests do not touch the user's cache."""
    os.environ["JAXUNLEARN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


MAPS = pathlib.Path("/proc/self/maps")
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(1) if event.endswith("backend_compile_duration") else 0
)


@pytest.fixture(autouse=True)
def few_programs():
    """Forgets programs in time: of 65,530 memory maps that a process may have, each has several.

    Long before, they and what was traced for them fill the memory: a map goes with a fifth of a MB.
    """
    yield
    if len(compiled) > 200 and MAPS.exists():
        compiled.clear()
        if MAPS.read_bytes().count(b"\n") > MOST_MAPS:
            jax.clear_caches()
