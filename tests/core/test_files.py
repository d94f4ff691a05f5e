"""Files are whole or not there."""

import errno
import json
import os
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import files
from jaxunlearn.core.errors import CheckpointError, DataError, brief, printable, sentence


def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "folder" / "a.txt"
    files.write_text(file, "größer\n")
    assert file.read_text(encoding="utf-8") == "größer\n"

    def half(part):
        part.write(b"half")
        assert file.read_bytes() == "größer\n".encode(), "not touched while another is written"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(file, half)
    assert file.read_bytes() == "größer\n".encode()
    files.write_bytes(file, b"\0\1")
    assert file.read_bytes() == b"\0\1"
    assert list(file.parent.iterdir()) == [file], "nothing is left beside it"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "there" / "a.txt")
    files.write_text(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "there" / "a.txt").read_text() == "text"


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        files.write_text(tmp_path / "taken" / "a.txt", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        files.write_text(tmp_path / "folder", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "taken"]


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {"a/b": np.arange(3), "words": np.array(["x", "yz"]), "none": np.zeros((0, 2))}
    files.write_npz(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert list(found) == list(arrays)
        for name, values in arrays.items():
            np.testing.assert_array_equal(found[name], values, strict=True)
    for value in (np.array([None]), jnp.ones(2, jnp.bfloat16)):
        with pytest.raises(ValueError, match=r"b\.npz: x: expected an array of numbers, got"):
            files.write_npz(tmp_path / "b.npz", {"x": value})
    assert not (tmp_path / "b.npz").exists()


def test_arrays_are_read_by_name_and_checked(tmp_path):
    path = tmp_path / "a.npz"
    names = np.array([b"caf\xc3\xa9", b"\xff"])
    np.savez(path, a=np.eye(2), names=names, other=np.array([None]))
    found = files.read_npz(path, ["a"], ["names", "b"], strings=["names"])
    assert list(found) == ["a", "names"]
    np.testing.assert_array_equal(found["a"], np.eye(2))
    assert list(found["names"]) == ["café", "\N{REPLACEMENT CHARACTER}"]
    for keys, strings, message in (
        (["b"], [], r"a\.npz: expected the keys b, got a, names, other"),
        (["a", "b", "c"], [], "expected the keys a, b and c, got"),
        (["names"], [], r"names: expected numbers .*, got \|S5 \[2\]"),
        (["a"], ["a"], r"a: expected strings \[n\], got float64 \[2, 2\]"),
        (["other"], [], "other: expected an array of numbers .*, got one that cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            files.read_npz(path, keys, strings=strings)
    with pytest.raises(DataError, match=r"bank: expected an \.npz file, got nothing at .*none"):
        files.read_npz(tmp_path / "none", ["a"], name="bank")


def test_a_full_disk_names_the_file(tmp_path):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*report\.json'"):
        files.write_atomic(tmp_path / "report.json", full)
    tmp_path.chmod(0o500)
    if not os.access(tmp_path, os.W_OK):
        with pytest.raises(OSError, match=r"Permission denied: '.*report\.json'"):
            files.write_text(tmp_path / "report.json", "")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_a_place_is_held_by_one(tmp_path):
    lock = tmp_path / "run" / "lock"
    with files.hold(lock, "runs/a"):
        assert files.is_held(lock)
        assert set(json.loads(lock.read_text())) == {"host", "pid", "start"}
        with (
            pytest.raises(CheckpointError, match=rf"runs/a: in use by process {os.getpid()} on "),
            files.hold(lock, "runs/a"),
        ):
            pass
        assert lock.exists()
    assert not lock.exists()
    # left by a killed process
    lock.write_text('{"host": "here", "pid": 1, "start": "once"}')
    assert not files.is_held(lock)
    with files.hold(lock, "runs/a"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


def test_a_lock_is_no_file_of_the_users(tmp_path):
    (tmp_path / "lock").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "lock")
    for name, kind in (("lock", CheckpointError), ("link", OSError)):
        with pytest.raises(kind, match=name), files.hold(tmp_path / name, "a"):
            pass
    assert (tmp_path / "lock").read_text() == "precious"


def test_arrays_beyond_the_memory_are_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10**6), y=np.zeros(3), z=np.zeros(10**6))
    monkeypatch.setattr(files, "most_bytes", lambda: 10**7)
    monkeypatch.setattr(files, "_read_key", None)
    with pytest.raises(DataError, match="z: expected arrays of at most 10,000,000 bytes together"):
        files.read_npz(tmp_path / "a.npz", ["x", "y", "z"])
    # a header that promises more than there is
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
                         + header.encode() + b"\0" * 16)  # fmt: skip
    with pytest.raises(DataError, match=r"x: .* as long as its header says, 8,000,000,000,000 by"):
        files.read_npz(tmp_path / "b.npz", ["x"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain\n\tä日", "plain\n\tä日"), ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
     ("\x9b2J", "\\x9b2J"), ("a\u202eb", "a\\u202eb"), ("\ud800", "\\ud800"), ("\r", "\\r")],
)  # fmt: skip
def test_what_terminals_obey_is_written_as_escapes(text, shown):
    assert printable(text) == shown


def test_values_are_quoted_briefly():
    assert brief((1, 2, 3, 4, 5)) == "(1, 2, 3, ...)"
    assert brief("x") == "'x'"
    assert brief(np.zeros((3, 4), np.float32)) == "ndarray float32 [3, 4]"
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 1000, list(range(1000)), deep, 10**5000, {n: n for n in range(99)}):
        assert len(brief(value)) < 120
    assert len(sentence(ValueError("word\n" * 1000))) < 510
