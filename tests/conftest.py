"""Eight virtual devices, no implicit promotion: set before JAX is imported."""

import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# fewer threads than twice the devices can dead-lock a collective on a small machine
os.environ.setdefault("NPROC", "32")

# programs compiled once serve both workers, the commands that tests start, and the next run
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "compiled"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
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
