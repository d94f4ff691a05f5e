"""Files are whole or not there."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import files
from jaxunlearn.core.errors import DataError


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
