"""What programs of a mesh may send and hold: read in what was compiled for a run."""

import math
import re
from collections import Counter

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn.core.trees import named_leaves
from jaxunlearn.engine import driver
from jaxunlearn.engine.communication import read_collectives
from jaxunlearn.engine.sharding import spec_of
from jaxunlearn.jaxprs.liveness import bytes_of

OPTIMIZER = re.compile(r"(^|/)(\w+_)?opt(_state)?(/|$)")


def watch(monkeypatch):
    """The programs that runs compile from now on: of the state, of a chunk, of the result."""
    programs, held = [], driver._held

    def note(program):
        programs.append(program)
        return held(program)

    monkeypatch.setattr(driver, "_held", note)
    return programs


def steps_among(programs):
    """Those that advance a state, which have the most arguments, on several devices."""
    return [
        one for one in programs
        if len(one.args_info[0]) > 4 and jax.tree.leaves(one.input_shardings)[0].num_devices > 1
    ]  # fmt: skip


def expect_in_place(variables, sharding):
    """Every array lies as the rules have it."""
    for path, leaf in named_leaves(variables).items():
        assert leaf.sharding.is_equivalent_to(_planned(path, leaf, sharding), leaf.ndim), path


def expect_steps_in_place(program, sharding):
    """The state goes in and comes out as the rules have it; returns its bytes on each device."""
    state, planned = named_leaves(program.args_info[0][0]), 0
    given = jax.tree.leaves(program.input_shardings[0][0])
    made = jax.tree.leaves(program.output_shardings[0])
    for (path, leaf), before, after in zip(state.items(), given, made, strict=True):
        wanted = _planned(path, leaf, sharding)
        assert before.is_equivalent_to(wanted, len(leaf.shape)), path
        assert after.is_equivalent_to(wanted, len(leaf.shape)), path
        shares = [a / b for a, b in zip(wanted.shard_shape(leaf.shape), leaf.shape, strict=True)]
        planned += bytes_of(leaf) * math.prod(shares)
    # of the sets, which lie whole, what a step does not read is no argument
    rest = sum(map(bytes_of, jax.tree.leaves(program.args_info[0][1:])))
    assert planned <= program.memory_analysis().argument_size_in_bytes <= planned + rest + 64
    return planned


def expect_needed_gathers(program, sharding, batch, reads=1):
    """Parameters are put together where they are read, one at a time, and nothing else of them.

    That is, of each shape at most twice (on the way there and back) for each of ``reads`` of each
    model in the state: so states of optimizers never are. Shapes with a side of ``batch``, which
    activations may have, are left out. Where parameters lie whole, none is.
    """
    state = named_leaves(program.args_info[0][0])
    models = [leaf.shape for path, leaf in state.items() if not OPTIMIZER.search(path)]
    kernels = Counter(shape for shape in models if len(shape) > 1 and batch not in shape)
    found = Counter()
    for one in read_collectives(program.as_text()):
        shapes = [sizes for _, sizes in one.shapes if one.kind == "all-gather"]
        whole = [s for s in kernels for made in shapes if sorted(s) == sorted(made)]
        assert len(whole) < 2, f"parameters of {whole} are gathered at once"
        found.update(whole)
    for shape, count in found.items():
        assert sharding.rules, f"{shape} lies whole, and is gathered"
        assert count <= 2 * reads * kernels[shape], (shape, count)
    return found


def _planned(path, leaf, sharding):
    key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    spec = PartitionSpec() if key else spec_of(path, leaf.shape, sharding)
    return NamedSharding(sharding.mesh, spec)
