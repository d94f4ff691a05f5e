"""Eight virtual devices, no implicit promotion: set before JAX is imported."""

import atexit
import os
import pathlib
import shutil
import tempfile

# compiling is most of what tests do: code that is optimised less is there in half the time
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# fewer threads than twice the devices can dead-lock a collective on a small machine
os.environ.setdefault("NPROC", "32")

# programs compiled once serve this worker and the commands that its tests start; not other
# workers: jax writes entries in place, and a half-written one is a warning, here an error
CACHE = tempfile.mkdtemp(prefix="compiled-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded data sets of the tests do not touch the user's cache."""
    os.environ["JAXUNLEARN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def own_programs():
    """A worker that keeps every program it ever compiled runs out of memory maps, and dies."""
    yield
    jax.clear_caches()


MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def few_programs():
    """Within a module too: a process may have 65,530 maps, a program has several."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
