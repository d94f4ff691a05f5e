"""Checkpoints come back bit for bit, or not at all."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxunlearn import checkpoint
from jaxunlearn.checkpoint import arrays
from jaxunlearn.core.errors import CheckpointError


def _tree():
    params = {
        "fc1": {
            "kernel": jnp.arange(12.0).reshape(4, 3) / 7,
            "bias": jnp.ones(3, jnp.bfloat16) / 3,
        },
        "a.b/c": jnp.float32(jnp.nan),
    }
    return {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 4),
        "mask": jnp.array([True, False]),
        "steps": jnp.int32(7),
        "none": None,
        "void": jnp.zeros((0, 3)),
        "host": np.arange(5, dtype=np.int64),
        "list": [jnp.int8([1, -1]), (jnp.float16(0.1),)],
    }


def _abstract(tree):
    return jax.tree.map(
        lambda a: a if isinstance(a, np.ndarray) else jax.ShapeDtypeStruct(a.shape, a.dtype), tree
    )


def _bits(tree):
    def bits(a):
        a = jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        a = np.asarray(a)
        return a.dtype.name, a.shape, a.tobytes()

    return jax.tree.map(bits, tree)


def _mesh(*shape):
    names = ("x", "y")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "deep" / "original"
    checkpoint.save(path, _tree(), {"loss": 0.5, "name": "ä"})
    return path


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "model"
    checkpoint.save(path, {"w": jnp.arange(1000.0)}, {"n": 1})
    return path


def test_round_trip_is_bit_equal(saved):
    tree, record = checkpoint.load(saved, like=_abstract(_tree()))
    assert record == {"loss": 0.5, "name": "ä"} == checkpoint.read_record(saved)
    assert jax.tree.structure(tree) == jax.tree.structure(_tree())
    assert _bits(tree) == _bits(_tree())
    assert isinstance(tree["host"], np.ndarray)
    assert not tree["params"]["fc1"]["kernel"].committed
    chex.assert_trees_all_equal(
        jax.random.uniform(tree["key"]), jax.random.uniform(jax.random.key(3))
    )


def test_arrays_serve_as_like(saved):
    tree, _ = checkpoint.load(saved, like=_tree())
    assert _bits(tree) == _bits(_tree())


def test_without_like_nested_dictionaries_of_numpy(saved):
    tree, _ = checkpoint.load(saved)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(tree))
    expected = _tree()
    assert _bits(tree["params"]) == _bits(expected["params"])
    assert _bits(tree["opt"]["0"]["mu"]) == _bits(expected["opt"][0].mu)
    np.testing.assert_array_equal(tree["keys"], jax.random.key_data(expected["keys"]))
    assert tree["list"]["1"]["0"] == np.float16(0.1)
    assert tree["void"].shape == (0, 3)


@pytest.mark.parametrize(
    "tree", [{}, jnp.ones(3), {"n": 3, "x": 0.1}], ids=["empty", "leaf", "int"]
)
def test_unusual_trees(tmp_path, tree):
    checkpoint.save(tmp_path / "c", tree, {})
    assert _bits(checkpoint.load(tmp_path / "c")[0]) == _bits(jax.tree.map(np.asarray, tree))
    chex.assert_trees_all_equal(checkpoint.load(tmp_path / "c", like=tree)[0], tree)


def test_sharded_arrays_go_to_other_shardings(tmp_path):
    x = jnp.arange(64.0).reshape(8, 8)
    keys = jax.random.split(jax.random.key(0), 8)
    fsdp, data, one = _mesh(2, 4), _mesh(8), _mesh(1)
    tree = {
        "w": jax.device_put(x, NamedSharding(fsdp, P("x", "y"))),
        "k": jax.device_put(keys, NamedSharding(data, P("x"))),
    }
    checkpoint.save(tmp_path / "c", tree, {})
    for mesh, spec in [(fsdp, P("y", "x")), (data, P("x")), (data, P()), (one, P())]:
        sharding = NamedSharding(mesh, spec)
        like = {
            "w": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            "k": jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=NamedSharding(mesh, P())),
        }
        got, _ = checkpoint.load(tmp_path / "c", like)
        assert got["w"].sharding == sharding
        assert got["k"].sharding.is_equivalent_to(NamedSharding(mesh, P()), 1)
        assert _bits(got) == _bits({"w": x, "k": keys})
    assert _bits(checkpoint.load(tmp_path / "c")[0]["w"]) == _bits(x)
    assert checkpoint.load(tmp_path / "c", tree)[0]["k"].sharding == tree["k"].sharding


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (
            {"w": np.zeros(999, np.float32)},
            r"leaf 'w': expected float32\[999\], got float32\[1000\]",
        ),
        ({"w": jnp.zeros(1000, jnp.int32)}, r"'w': expected int32\[1000\], got float32\[1000\]"),
        ({"v": {"w": jnp.zeros(2)}}, r"'v/w': expected float32\[2\], got none"),
        ({}, r"'w': expected none, got float32\[1000\]"),
        ({"w": jax.random.key(0)}, r"'w': expected key<fry>\[2\], got float32\[1000\]"),
    ],
)
def test_a_tree_unlike_the_stored_one_is_named(small, like, words):
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(small, like)


def test_generators_are_not_confused(tmp_path):
    checkpoint.save(tmp_path / "c", jax.random.key(0, impl="rbg"), {})
    with pytest.raises(CheckpointError, match="expected key<fry>"):
        checkpoint.load(tmp_path / "c", jax.random.key(0))


def _stored_files(path):
    return sorted(f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file())


def _flip(file: Path):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _truncate(file: Path):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("harm", [_flip, _truncate, Path.unlink])
def test_every_file_is_guarded(small, harm):
    for name in _stored_files(small):
        before = (small / name).read_bytes()
        if before or harm is Path.unlink:
            harm(small / name)
            with pytest.raises(CheckpointError, match=name):
                checkpoint.load(small)
            with pytest.raises(CheckpointError, match=name):
                checkpoint.verify(small)
        (small / name).write_bytes(before)
    checkpoint.verify(small)


def test_an_added_file_is_named(small):
    (small / "variables" / "more").write_text("")
    with pytest.raises(CheckpointError, match="variables/more"):
        checkpoint.load(small)


def test_the_record_is_verified_alone(small):
    record = small / "record.json"
    record.write_text(record.read_text().replace("1", "2"))
    with pytest.raises(CheckpointError, match=r"record\.json"):
        checkpoint.read_record(small)


def test_the_digest_tells_checkpoints_apart(small, tmp_path):
    checkpoint.save(tmp_path / "same", {"w": jnp.arange(1000.0)}, {"n": 2})
    assert checkpoint.digest(small) == checkpoint.digest(small)
    assert checkpoint.digest(small) != checkpoint.digest(tmp_path / "same")
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        checkpoint.digest(tmp_path / "absent")


def test_a_checkpoint_is_not_overwritten_unasked(small):
    with pytest.raises(CheckpointError, match="--force"):
        checkpoint.save(small, {"w": jnp.zeros(2)}, {"n": 2})
    assert checkpoint.read_record(small) == {"n": 1}
    checkpoint.save(small, {"w": jnp.zeros(2)}, {"n": 2}, overwrite=True)
    tree, record = checkpoint.load(small)
    assert record == {"n": 2}
    assert tree["w"].shape == (2,)
    assert os.listdir(small.parent) == [small.name]


def test_nothing_but_a_checkpoint_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(CheckpointError, match="expected a checkpoint"):
            checkpoint.save(path, {}, {}, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_killed_save_leaves_no_checkpoint_and_does_not_stand_in_the_way(tmp_path, monkeypatch):
    path = tmp_path / "model"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, {"w": jnp.ones(3)}, {})
    assert os.listdir(tmp_path) == [".model.tmp"]
    with pytest.raises(CheckpointError, match="without manifest"):
        checkpoint.load(path)
    checkpoint.save(path, {"w": jnp.ones(2)}, {})
    assert checkpoint.load(path)[0]["w"].shape == (2,)
    assert os.listdir(tmp_path) == ["model"]


def test_a_kill_between_the_renames_keeps_the_former_and_says_where(small, monkeypatch):
    rename = Path.rename

    def killed_at_the_second(self, target):
        if target == small:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(small, {}, {"n": 2}, overwrite=True)
    with pytest.raises(CheckpointError, match=r"is in .*\.model\.old"):
        checkpoint.load(small)
    assert checkpoint.read_record(small.parent / ".model.old") == {"n": 1}


def test_a_failed_save_cleans_up_and_keeps_the_former(small, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "_write_manifest", full)
    with pytest.raises(CheckpointError, match="no space left"):
        checkpoint.save(small, {"w": jnp.ones(2)}, {}, overwrite=True)
    assert os.listdir(small.parent) == [small.name]
    assert checkpoint.read_record(small) == {"n": 1}


def test_a_folder_that_cannot_be_made_is_reported(small):
    with pytest.raises(CheckpointError, match="cannot write checkpoint"):
        checkpoint.save(small / "record.json" / "below", {}, {})


class TestBesideTheProgram:
    """Saves that go on while the program does."""

    @pytest.fixture
    def gate(self, monkeypatch):
        """Holds saves up before the last file, the manifest, is written."""
        opened, write = threading.Event(), checkpoint._write_manifest

        def wait(path):
            assert opened.wait(60)
            write(path)

        monkeypatch.setattr(checkpoint, "_write_manifest", wait)
        yield opened
        opened.set()
        checkpoint.wait()

    def test_the_arrays_may_change_meanwhile(self, tmp_path, gate):
        rest = {name: leaf for name, leaf in _tree().items() if name != "host"}
        tree, expected = {**rest, "host": np.arange(5)}, jax.device_get(_tree()["params"])
        saving = checkpoint.save_async(tmp_path / "c", tree, {"n": 1})
        assert not saving.done()
        assert not (tmp_path / "c").exists()
        jax.jit(lambda t: jax.tree.map(jnp.zeros_like, t), donate_argnums=0)(tree["params"])
        tree["host"][:] = 0
        gate.set()
        saving.result()
        assert saving.seconds > 0
        found, record = checkpoint.load(tmp_path / "c", _tree())
        assert record == {"n": 1}
        jax.tree.map(np.testing.assert_array_equal, found["params"], expected)
        np.testing.assert_array_equal(found["host"], np.arange(5))
        assert jax.random.key_data(found["key"]).tolist() == [0, 3]
        assert os.listdir(tmp_path) == ["c"]

    def test_what_comes_next_waits(self, small, gate):
        saving = checkpoint.save_async(small, {"w": jnp.ones(2)}, {"n": 2}, overwrite=True)
        checkpoint.wait(small, timeout=0.01)
        assert checkpoint.read_record(small) == {"n": 1}, "the former is there until then"
        threading.Timer(0.05, gate.set).start()
        assert checkpoint.load(small)[1] == {"n": 2}
        assert saving.done()
        checkpoint.save_async(small, {"w": jnp.ones(2)}, {"n": 3}, overwrite=True)
        checkpoint.save(small.parent / "other", {}, {})
        assert checkpoint.read_record(small) == {"n": 3}
        checkpoint.save_async(small, {}, {"n": 4}, overwrite=True)
        checkpoint.remove(small)
        assert os.listdir(small.parent) == ["other"]

    def test_a_failure_is_told_and_keeps_the_former(self, small, monkeypatch):
        def full(*_):
            raise OSError("no space left")

        monkeypatch.setattr(checkpoint, "_write_manifest", full)
        saving = checkpoint.save_async(small, {"w": jnp.ones(2)}, {}, overwrite=True)
        checkpoint.wait()
        with pytest.raises(CheckpointError, match="no space left"):
            saving.result()
        assert os.listdir(small.parent) == [small.name]
        assert checkpoint.read_record(small) == {"n": 1}

    @pytest.mark.parametrize("fails", [False, True])
    def test_the_copies_are_let_go_of(self, tmp_path, monkeypatch, fails):
        seen, copied = [], arrays.copied

        def watched(leaves):
            made = copied(leaves)
            seen.extend(weakref.ref(leaf) for _, leaf in made.values())
            return made

        def full(*_):
            raise OSError("no space left")

        monkeypatch.setattr(arrays, "copied", watched)
        if fails:
            monkeypatch.setattr(checkpoint, "_write_manifest", full)
        saving = checkpoint.save_async(tmp_path / "c", {"w": jnp.ones(9), "v": jnp.ones(3)}, {})
        checkpoint.wait()
        gc.collect()
        assert [one() for one in seen] == [None, None]
        assert saving.done()

    def test_what_is_known_before_is_told_at_once(self, small):
        with pytest.raises(CheckpointError, match="exists"):
            checkpoint.save_async(small, {}, {})
        with pytest.raises(TypeError, match="expected an array"):
            checkpoint.save_async(small, {"name": "x"}, {}, overwrite=True)

    def test_divided_arrays(self, tmp_path):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        where = NamedSharding(mesh, P(None, "data"))
        tree = {"w": jax.device_put(jnp.arange(48.0).reshape(3, 16), where)}
        checkpoint.save_async(tmp_path / "c", tree, {}).result()
        found = checkpoint.load(tmp_path / "c", tree)[0]["w"]
        assert found.sharding == where
        np.testing.assert_array_equal(found, tree["w"])

    @pytest.mark.parametrize("place", ["_write_manifest", "_publish", "_remove_folder"])
    def test_a_kill_leaves_the_last_complete_one(self, tmp_path, place):
        code = (
            "import os, signal, sys, jax.numpy as jnp\n"
            "from jaxunlearn import checkpoint\n"
            "path, place = sys.argv[1:]\n"
            "checkpoint.save(path, {'w': jnp.ones(3)}, {'n': 1})\n"
            "setattr(checkpoint, place, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
            "checkpoint.save_async(path, {'w': jnp.zeros(3)}, {'n': 2}, overwrite=True).result()\n"
        )
        words = [sys.executable, "-c", code, str(tmp_path / "c"), place]
        assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
        found, record = checkpoint.load(tmp_path / "c")
        assert record == {"n": 1}
        assert found["w"].tolist() == [1, 1, 1]
        checkpoint.save(tmp_path / "c", {"w": jnp.zeros(3)}, {"n": 3}, overwrite=True)
        assert os.listdir(tmp_path) == ["c"]


def test_removing(small):
    (small.parent / ".model.tmp").mkdir()
    (small.parent / ".model.old").mkdir()
    (small.parent / "other").mkdir()
    (small.parent / "other" / "file").touch()
    checkpoint.remove(small)
    checkpoint.remove(small)
    assert os.listdir(small.parent) == ["other"]
    with pytest.raises(CheckpointError, match="left as it is"):
        checkpoint.remove(small.parent / "other")


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="'name': expected an array"):
        checkpoint.save(tmp_path / "c", {"name": "x"}, {})
    with pytest.raises(TypeError, match="JSON"):
        checkpoint.save(tmp_path / "c", {}, {"f": jnp.ones})
    with pytest.raises(ValueError, match="'a/b' twice"):
        checkpoint.save(tmp_path / "c", {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, {})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"digest": 1}'])
def test_a_foreign_manifest_is_no_checkpoint(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        checkpoint.load(tmp_path / "absent")


def test_versions_are_json():
    found = json.loads(json.dumps(checkpoint.versions()))
    assert found["jax"] == jax.__version__
    assert found["devices"] == jax.device_count()
    assert {"python", "flax", "optax", "orbax-checkpoint", "numpy", "jaxlib"} <= set(found)


@pytest.mark.parametrize(
    "name", ["a[1]", "a]b[", "what?*", "zwei Wörter", "日本", "{x}%20#", "-rf", "a'b\"c"]
)
def test_any_path_is_written_and_read(tmp_path, name):
    """Orbax's own search for its files takes some characters for patterns."""
    path = tmp_path / f"folder {name}" / name
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "deep": {"b": jnp.float32(jnp.nan)}}
    checkpoint.save(path, tree, {"n": 1})
    checkpoint.save(path, tree, {"n": 2}, overwrite=True)
    found, record = checkpoint.load(path, tree)
    assert record == {"n": 2}
    assert _bits(found) == _bits(tree)
    assert os.listdir(path.parent) == [name]


def test_what_reads_back_otherwise_is_not_published(tmp_path, monkeypatch):
    load = checkpoint.arrays.ocp.load
    monkeypatch.setattr(
        checkpoint.arrays.ocp, "load", lambda *given: jax.tree.map(lambda a: a + 1, load(*given))
    )
    with pytest.raises(CheckpointError, match="leaf 'w' reads back as another array"):
        checkpoint.save(tmp_path / "c", {"w": jnp.ones(3)}, {})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["tmp", "old"])
def test_a_users_checkpoint_with_the_name_of_a_leftover_is_left_alone(tmp_path, kind):
    mine = tmp_path / f".a.{kind}"
    checkpoint.save(mine, {"w": jnp.ones(3)}, {"n": 1})
    for change in (
        lambda: checkpoint.clean(tmp_path / "a"),
        lambda: checkpoint.remove(tmp_path / "a"),
    ):
        change()
        assert checkpoint.read_record(mine) == {"n": 1}
    with pytest.raises(CheckpointError, match="got a folder of another kind: left as it is"):
        checkpoint.save(tmp_path / "a", {"w": jnp.ones(2)}, {})
    checkpoint.verify(mine)


@pytest.mark.parametrize("kind", ["tmp", "old"])
def test_a_users_folder_or_link_with_the_name_of_a_leftover_is_left_alone(tmp_path, kind):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "record.json").write_text("{}")
    (tmp_path / f".a.{kind}").mkdir()
    (tmp_path / f".a.{kind}" / "thesis.txt").write_text("precious")
    (tmp_path / f".b.{kind}").symlink_to(tmp_path / "other")
    for name in "ab":
        checkpoint.clean(tmp_path / name)
        with pytest.raises(CheckpointError, match="left as it is"):
            checkpoint.save(tmp_path / name, {"w": jnp.ones(2)}, {})
    assert (tmp_path / f".a.{kind}" / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "other" / "record.json").exists()


def test_what_a_kill_left_is_mended(small, monkeypatch):
    rename = Path.rename

    def killed_at_the_second(self, target):
        if target == small and self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(small, {}, {"n": 2}, overwrite=True)
    assert sorted(os.listdir(small.parent)) == [".model.old", ".model.tmp"]
    checkpoint.clean(small)
    assert os.listdir(small.parent) == ["model"]
    checkpoint.verify(small)
    assert checkpoint.read_record(small) == {"n": 1}


@pytest.mark.parametrize("lost", ["manifest.json", "record.json", "leaves.json", "variables"])
def test_a_damaged_checkpoint_is_replaced_when_asked_but_no_other_folder(small, tmp_path, lost):
    (small / lost).rename(tmp_path / "lost")
    checkpoint.save(small, {"w": jnp.ones(2)}, {"n": 3}, overwrite=True)
    assert checkpoint.load(small)[1] == {"n": 3}
    (small / "notes.txt").write_text("precious")
    with pytest.raises(CheckpointError, match=r"with notes\.txt in it: left as it is"):
        checkpoint.save(small, {}, {}, overwrite=True)
    assert (small / "notes.txt").exists()


def test_one_made_meanwhile_is_never_replaced(tmp_path, monkeypatch):
    path, publish = tmp_path / "c", checkpoint._publish

    def late(*given):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_sibling", lambda path, kind: path.with_name(f".x.{kind}"))
            patch.setattr(checkpoint, "_publish", publish)
            checkpoint.save(path, {"w": jnp.ones(1)}, {"n": 1})
        publish(*given)

    monkeypatch.setattr(checkpoint, "_publish", late)
    with pytest.raises(CheckpointError, match="made by another process meanwhile"):
        checkpoint.save(path, {"w": jnp.ones(2)}, {"n": 2})
    assert checkpoint.read_record(path) == {"n": 1}
    assert os.listdir(tmp_path) == ["c"]


def test_of_two_who_write_the_same_one_is_told(tmp_path, monkeypatch):
    path, begin, told = tmp_path / "c", checkpoint.arrays.begin, []

    def both(*given):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.arrays, "begin", begin)
            with pytest.raises(CheckpointError, match=r"c: in use by process \d+ on .* since") as e:
                checkpoint.save(path, {"w": jnp.ones(1)}, {"n": 1})
        told.append(str(e.value))
        return begin(*given)

    monkeypatch.setattr(checkpoint.arrays, "begin", both)
    checkpoint.save(path, {"w": jnp.ones(2)}, {"n": 2})
    assert told
    assert f"process {os.getpid()} " in told[0]
    assert checkpoint.load(path)[1] == {"n": 2}


def test_links_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "disk" / "model", target_is_directory=True)
    for number in (1, 2):
        checkpoint.save(link, {"w": jnp.ones(number)}, {"n": number}, overwrite=True)
        assert link.is_symlink()
        assert checkpoint.load(tmp_path / "disk" / "model")[1] == {"n": number}
    assert os.listdir(tmp_path / "disk") == ["model"]
    checkpoint.remove(link)
    assert not os.listdir(tmp_path / "disk")
