"""The public surface, and what importing it must not do."""

import os
import subprocess
import sys
import time

import pytest

import jaxunlearn
from jaxunlearn.methods import METHODS


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )


@pytest.mark.parametrize("name", jaxunlearn.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    found = getattr(jaxunlearn, name)
    assert found.__doc__


def test_the_lazy_table_and_all_agree():
    assert {*jaxunlearn._WHERE, *jaxunlearn._ROOMS} == set(jaxunlearn.__all__)
    assert len(jaxunlearn.__all__) <= 44, "the rest belongs in rooms"


def test_every_method_goes_by_its_name():
    for name, row in METHODS.items():
        assert getattr(jaxunlearn, name) is row.factory
        assert name in dir(jaxunlearn)


ROOMS = [name for name in jaxunlearn._ROOMS if hasattr(getattr(jaxunlearn, name), "__all__")]


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_a_room_is_there(room):
    home = getattr(jaxunlearn, room)
    for name in home.__all__:
        assert getattr(home, name).__doc__, name


def test_names_are_what_their_modules_define():
    """In a process that has imported everything: no submodule may hide a name."""
    code = """
import importlib, pkgutil, jaxunlearn
for module in pkgutil.walk_packages(jaxunlearn.__path__, "jaxunlearn."):
    if not module.name.startswith("jaxunlearn.configs"):
        importlib.import_module(module.name)
for name, home in jaxunlearn._WHERE.items():
    module = importlib.import_module(f"jaxunlearn.{home}")
    assert getattr(jaxunlearn, name) is getattr(module, name), name
print("same")
"""
    out = python(code)
    assert out.stdout.strip() == "same", out.stderr


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'forget_everything'"):
        jaxunlearn.forget_everything  # noqa: B018


def test_import_loads_neither_jax_nor_tfds():
    out = python("import sys, jaxunlearn; print(sorted({'jax', 'flax'} & set(sys.modules)))")
    assert out.stdout.strip() == "[]", out.stderr


def test_the_embedded_run_touches_neither_tfds_nor_the_network(tmp_path):
    """Sockets are forbidden, and TFDS cannot be imported."""
    code = f"""
import socket, sys
def forbidden(*args, **kwargs):
    raise AssertionError("the network was touched")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = forbidden
sys.modules["tensorflow_datasets"] = None
import jaxunlearn
for name in jaxunlearn.__all__:
    getattr(jaxunlearn, name)
slow = dict.fromkeys(["scipy.stats", "sklearn", "matplotlib", "PIL"]).keys() & sys.modules
assert not slow, f"imported before they are needed: {{slow}}"
from jaxunlearn.cli import main
words = "run train.epochs=1 retrained=1 methods=finetune methods.finetune.steps=2 --runs".split()
sys.exit(main([*words, {str(tmp_path)!r}]))
"""
    out = python(code)
    assert out.returncode == 0, out.stderr
    assert "retrained" in out.stdout


def test_help_is_quick():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        out = subprocess.run(
            [sys.executable, "-m", "jaxunlearn.cli", "--help"], capture_output=True, text=True
        )
        times.append(time.perf_counter() - start)
    assert "train, unlearn, retrain, compare" in out.stdout
    assert min(times) < 0.5
