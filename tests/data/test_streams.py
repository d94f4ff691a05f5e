"""Streams: sources, workers, folders, errors. What is trained on them: tests/engine."""

import dataclasses
import gc
import json
import pickle
import signal
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxunlearn as ju
from jaxunlearn.cli import main
from jaxunlearn.config import DataConfig
from jaxunlearn.core.errors import DataError
from jaxunlearn.data import stream_workers
from jaxunlearn.data.examples import fetch
from jaxunlearn.data.sources import load_dataset
from tests import toy
from tests.data import stream_sources as sources
from tests.data.stream_sources import Records, Together, X, Y
from tests.data.test_sources import write_tfds
from tests.runs import hurry

POSITIONS = np.array([[7, 3, 179], [0, 3, 90]])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Records, Together])
def test_rows_are_those_of_the_source(kind, workers):
    x = ju.data.stream(kind(), workers=workers)
    assert (len(x), x.shape, x.dtype) == (180, X.shape, np.uint8)
    np.testing.assert_array_equal(x.labels, Y)
    np.testing.assert_array_equal(x.read(POSITIONS), X[POSITIONS])
    some = x[np.arange(180) % 2 == 1]
    np.testing.assert_array_equal(some.read(np.arange(90)), X[1::2])
    np.testing.assert_array_equal(some.labels, Y[1::2])
    every = np.random.default_rng(0).permutation(180)  # blocks of each worker are of many sizes
    np.testing.assert_array_equal(x.read(every), X[every])


def test_a_list_an_array_and_functions_typed_at_a_prompt_are_sources():
    shift = 3
    for workers in (0, 1):
        x = ju.data.stream(X, decode=lambda image: image + shift, workers=workers)
        np.testing.assert_array_equal(x.read([5, 2]), X[[5, 2]] + np.uint8(3))
    trees = [{"tokens": np.arange(3) + n, "mask": np.ones(3, bool)} for n in range(4)]
    x = ju.data.stream(trees)
    read = x.read([2, 1])
    np.testing.assert_array_equal(read["tokens"], [[2, 3, 4], [1, 2, 3]])
    assert (read["tokens"].dtype, read["mask"].dtype) == (np.int32, bool)
    examples = ju.data.as_examples(x, np.arange(4))
    assert ju.data.inputs_like(examples, 2)["tokens"].shape == (2, 3)


def test_a_source_of_grain_is_one():
    grain = pytest.importorskip("grain")
    x = ju.data.stream(
        grain.MapDataset.source(Records()).map(lambda pair: (255 - pair[0], pair[1]))
    )
    np.testing.assert_array_equal(x.read([1, 2]), 255 - X[[1, 2]])


@pytest.mark.parametrize(
    "request_", [ju.forget_class(1), ju.data.forget_indices([3, 4]), ju.data.forget_random(0.1)]
)
def test_sets_are_those_of_resident_examples(request_):
    resident = ju.make_sets(X, Y, request_)
    x = ju.data.stream(Records())
    streamed = ju.make_sets(x, x.labels, request_)
    for name in ("forget", "retain", "train"):
        own, other = getattr(streamed, name), getattr(resident, name)
        np.testing.assert_array_equal(own.indices, other.indices)
        some = own.indices[:7]
        np.testing.assert_array_equal(fetch(own.examples, some), fetch(other.examples, some))


def test_a_small_set_is_read_into_memory():
    x = ju.data.stream(Records())
    sets = ju.make_sets(x, Y, ju.forget_class(1))
    small = sets._replace(forget=ju.data.resident(sets.forget))
    assert len(small.forget.examples.y) == 50
    assert len(small.train.examples.y) == 180  # of the larger one
    for one, other in ((sets, small), (sets, sets)):
        np.testing.assert_array_equal(
            fetch(one.forget.examples, one.forget.indices),
            fetch(other.forget.examples, other.forget.indices),
        )


def test_streams_of_one_form_share_programs():
    compiled = []

    @jax.jit
    def count(examples):
        compiled.append(1)
        return jnp.sum(examples.y)

    for source in (Records(), Together()):
        count(ju.data.as_examples(ju.data.stream(source), Y))
    assert len(compiled) == 1


def test_programs_never_hand_out_a_stream_nor_keep_one():
    first, second = ju.data.stream(Records(), name="first"), ju.data.stream(X[::-1], name="other")
    seen = weakref.ref(first._shared)
    same = jax.jit(lambda examples: examples.y + examples.x.ndim)
    give = jax.jit(lambda examples: examples)
    for x in (first, second):
        examples = ju.data.as_examples(x, Y)
        same(examples)
        for program in (give, lambda e: jax.jit(lambda: e.x)()):
            with pytest.raises(DataError, match=r"(first|other): expected a program that"):
                program(examples)
        # outside of programs trees of streams are taken apart and put together again
        assert jax.tree.map(lambda leaf: leaf, examples).x is x
    with pytest.raises(DataError, match="got a streamed set"):
        jax.jit(lambda examples: examples.y + len(examples.x))(examples)
    del first, x, examples, program
    gc.collect()
    assert seen() is None
    assert same._cache_size() == 1


def test_a_program_that_reads_a_stream_says_what_is_wrong():
    examples = ju.data.as_examples(ju.data.stream(Records(), name="photos"), Y)
    with pytest.raises(DataError, match=r"photos: expected resident examples.*got a streamed set"):
        jax.jit(lambda at: fetch(examples, at))(jnp.arange(3))
    with pytest.raises(DataError, match="got a streamed set"):
        np.asarray(examples.x)


BAD = {
    "beyond": r"photos: expected as many records as its length says, 180, got none at position 60",
    "undecodable": r"photos: expected a record that decodes at position 60, got ValueError: no",
    "of_another_size": r"photos: expected examples of one form, uint8 \[6, 6, 1\], got .* at .*60",
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("act", BAD)
def test_bad_records_are_told_in_one_line(act, workers):
    x = ju.data.stream(Records(60, getattr(sources, act)), workers=workers, name="photos")
    with pytest.raises(DataError, match=BAD[act]) as caught:
        x.read(np.arange(50, 70))
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(x.read([1, 2]), X[[1, 2]])  # others are read all the same


LAST = {
    "beyond": "expected as many records as its length says, 180, got none at position 179",
    "leave": "expected a record that decodes at position 179, got SystemExit: 3",
    "of_another_size": "expected examples of one form, .* at position 179",
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("act", LAST)
def test_a_source_shorter_than_it_says_is_told_when_it_is_given(act, workers):
    with pytest.raises(DataError, match=rf"photos: {LAST[act]}") as caught:
        ju.data.stream(Records(179, getattr(sources, act)), workers=workers, name="photos")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("ask", [lambda x: x.read([1, 60]), lambda x: x.labels])
def test_a_source_that_leaves_the_program_is_told(ask, workers):
    x = ju.data.stream(Records(60, sources.leave), workers=workers)
    with pytest.raises(DataError, match="decodes at position 60, got SystemExit: 3"):
        ask(x)


@pytest.mark.parametrize(
    ("code", "words"), [(None, "without saying why"), (3, "with status 3"), (-9, "SIGKILL")]
)
def test_the_end_of_a_worker_is_told(code, words):
    assert words in stream_workers._told_end(code)


def test_ctrl_c_stays_one_where_it_can_arrive(monkeypatch):
    # programs in the background ignore it
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    recipe = stream_workers.Recipe(Records(), None, "photos")
    with pytest.raises(KeyboardInterrupt), stream_workers._explained(recipe, 3):
        raise KeyboardInterrupt
    with ThreadPoolExecutor(1) as pool:  # of a source in another thread
        x = ju.data.stream(Records(60, sources.interrupt))
        with pytest.raises(DataError, match="position 60, got KeyboardInterrupt"):
            pool.submit(x.read, [60]).result()


@pytest.mark.parametrize("rows", [[-1], [3, 180], [[0], [-181]], [90]])
def test_positions_lie_in_the_stream(rows):
    x = ju.data.stream(Records(), name="photos")
    x = x[:90] if rows == [90] else x
    with pytest.raises(DataError, match=r"photos: expected positions 0 to (179|89) of the stream"):
        x.read(rows)
    assert x.read(np.zeros(0, int)).shape == (0, 6, 6, 1)


def test_numbers_that_are_not_finite_are_refused():
    floats = X.astype(np.float64)
    floats[3] = np.inf
    with pytest.raises(DataError, match=r"position 3.*NaN, infinity"):
        ju.data.stream(floats).read([2, 3])


def test_workers_map_files_and_get_no_large_copies(tmp_path, monkeypatch):
    whole = np.memmap(tmp_path / "raw", np.uint8, "w+", 16, X.shape)
    whole[:] = X
    whole.flush()
    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr(stream_workers, "MOST", 3000)  # of 6480 bytes
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    for array in (whole, stored, whole[5:], whole[::-1][3:], stored[:, ::2, 1:4]):
        sent = stream_workers._pickled(stream_workers.Recipe(array, None, "x"))
        np.testing.assert_array_equal(pickle.loads(sent).source, array)
    x = ju.data.stream(stored[::2], workers=1)
    np.testing.assert_array_equal(x.read([80, 1]), X[[160, 2]])
    private = np.memmap(tmp_path / "raw", np.uint8, "c", 16, X.shape)
    for source in (X, [*X], stored[np.arange(180)], private, {0: 1, "x": X}):
        with pytest.raises(DataError, match=r"workers: expected a source that workers open.*3,000"):
            stream_workers._pickled(stream_workers.Recipe(source, None, "x"))


def test_rows_of_workers_share_memory_that_is_used_again():
    x = ju.data.stream(Records(), workers=2)
    sizes = (3, 40, 90, 40, 3, 7, 40)
    held = [x.read(np.arange(size)) for size in sizes]
    for size, rows in zip(sizes, held, strict=True):  # what is held is not written to
        np.testing.assert_array_equal(rows, X[:size])
    del held, rows
    for _ in range(9):
        np.testing.assert_array_equal(x.read(np.arange(40)[::-1]), X[:40][::-1])
    workers = x._shared._workers
    made = workers._slots
    assert len(workers._spare) <= stream_workers.SPARE
    x.read(np.arange(40))
    assert workers._slots == made == len(sizes)
    trees = ju.data.stream([{"a": np.full(3, n), "b": np.full((2, 5), n > 2)} for n in range(9)])
    whole = ju.data.stream(trees._shared.recipe.source, workers=1).read(np.arange(9))
    jax.tree.map(np.testing.assert_array_equal, whole, trees.read(np.arange(9)))


def test_a_worker_that_dies_ends_the_reading():
    x = ju.data.stream(Records(60, sources.end_worker), workers=2)
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"workers: expected worker \d to go on.*by signal 9"):
        x.read(np.arange(180))
    assert time.perf_counter() - began < 10
    np.testing.assert_array_equal(x.read([3, 1]), X[[3, 1]])
    x._shared._workers._workers[1].process.kill()  # while nothing is asked
    with pytest.raises(DataError, match=r"workers: expected worker 1 to go on.*by signal 9"):
        x.read(np.arange(50))


@pytest.mark.parametrize("ask", [lambda x: x.read([1, 60]), lambda x: x.labels])
def test_a_worker_that_hangs_ends_the_reading(ask, monkeypatch):
    x = ju.data.stream(Records(60, sources.hang), workers=1)
    x.read([1])
    monkeypatch.setattr(stream_workers, "LIMIT", 0.5)
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"workers: expected worker 0 to read .* 0.5 seconds, got"):
        ask(x)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"workers": -1}, ValueError, "workers: expected a number of processes, 0 or more, got -1"),
        ({"workers": True}, ValueError, "workers: expected a number"),
        ({"source": 3}, TypeError, "source: expected one with len"),
        ({"source": []}, DataError, "source: expected records, got a source without any"),
        ({"decode": 3}, TypeError, "decode: expected a function"),
        ({"source": ["text"]}, DataError, "position 0, got TypeError: an array of"),
        ({"source": [{}]}, DataError, "source: expected records of arrays"),
        ({"source": Records(0, sources.undecodable)}, DataError, "position 0, got ValueError"),
    ],
)
def test_what_is_given_is_checked(given, error, words):
    with pytest.raises(error, match=words):
        ju.data.stream(given.pop("source", Records()), **given)


def test_labels_have_to_be_there_and_as_many():
    with pytest.raises(DataError, match=r"expected records .x, label. or with a 'label'"):
        ju.data.stream(X).labels  # noqa: B018
    with pytest.raises(DataError, match="expected 179 examples for 179 labels, got an array"):
        ju.make_sets(ju.data.stream(X), Y[:179], ju.forget_class(1))


@pytest.fixture
def photos(tmp_path):
    """The images in folders of their classes, the last 60 for testing."""
    for position, (image, label) in enumerate(zip(X, Y, strict=True)):
        folder = tmp_path / "photos" / ("test" if position >= 120 else "train") / f"kind {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{position:03d}.png")
    return tmp_path / "photos"


def records_file(path, positions):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for position in positions:
        writer.write(sources.as_npz(position))
    writer.close()


@pytest.fixture
def config(tmp_path, photos):
    """A configuration for each kind of source that can be streamed."""
    pytest.importorskip("array_record")
    records = tmp_path / "records"
    records.mkdir()
    records_file(records / "train.array_record-00000-of-00002", range(70))
    records_file(records / "train.array_record-00001-of-00002", range(70, 120))
    records_file(records / "test.array_record", range(120, 180))
    write_tfds(tmp_path / "tfds")
    made = {"photos": {"name": str(photos)}, "records": {"name": str(records)}}
    made["tfds"] = {"name": "shapes", "dir": str(tmp_path / "tfds")}
    return {kind: DataConfig(cache=str(tmp_path / "cache"), **own) for kind, own in made.items()}


def test_each_source_gives_the_same_streamed_and_resident(config):
    for kind, own in config.items():
        resident = load_dataset(own)
        streamed = load_dataset(dataclasses.replace(own, stream=True))
        again = load_dataset(dataclasses.replace(own, stream=True))  # labels out of the cache
        for split in ("train", "test"):
            x, y = getattr(streamed, f"{split}_x"), getattr(streamed, f"{split}_y")
            np.testing.assert_array_equal(
                x.read(np.arange(len(x))), getattr(resident, f"{split}_x")
            )
            np.testing.assert_array_equal(y, getattr(resident, f"{split}_y"), kind)
            np.testing.assert_array_equal(y, getattr(again, f"{split}_y"))
        assert streamed.class_names == resident.class_names
        assert streamed.fingerprint == again.fingerprint != resident.fingerprint
    assert load_dataset(config["photos"]).class_names == tuple(f"kind {k}" for k in range(4))


def test_a_run_streams_a_folder(photos, capsys, tmp_path, monkeypatch):
    hurry(monkeypatch)
    chosen = [f"data.name={photos}", "data.stream=true", "data.unseen=20", "request.classes=kind 1"]
    small = ["train.epochs=2", "train.batch_size=20", "retrained=1"]
    run = ["run", "name=photos", *chosen, *small, "--runs", str(tmp_path)]
    assert main([*run, "methods=finetune"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "inputs [6, 6, 1]" in out
    rows = json.loads((tmp_path / "photos" / "report.json").read_text())["rows"]
    assert {"accuracy_forget", "accuracy_test", "loss_attack"} <= {row["name"] for row in rows}
    assert main(["verify", "photos", "--runs", str(tmp_path)]) == 0


CHANGES = {
    r"000.png: expected an image, got .*No such file": lambda path: path.unlink(),
    r"000.png: expected an image, got \w": (lambda path: path.write_bytes(path.read_bytes()[:60])),
    r"photos: train: expected examples of one form, uint8 \[6, 6, 1\], got uint8 \[9, 7, 1\] at": (
        lambda path: Image.new("L", (7, 9)).save(path)
    ),
    r"000.png: expected an image, got .*in colour": (
        lambda path: Image.new("RGB", (6, 6), (255, 0, 0)).save(path)
    ),
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_folder_that_changes_ends_the_run(said, photos):
    data = load_dataset(DataConfig(name=str(photos), stream=True))
    sets = ju.make_sets(data.train_x, data.train_y, ju.forget_class(1))
    (path,) = photos.glob("train/*/000.png")
    CHANGES[said](path)
    with pytest.raises(DataError, match=said):
        ju.unlearn(
            toy.method("finetune"), toy.mlp().init(jax.random.key(0)), sets, jax.random.key(1),
            steps=20, batch_size=16,
        )  # fmt: skip


def test_images_keep_their_depth_and_colours(photos):
    folder, red = photos / "train" / "kind 0", Image.new("RGB", (6, 6), (255, 0, 0))
    one = DataConfig(name=str(photos))
    for name in ("000.png", "zz.png"):  # the first one tells, and one in the middle is read
        Image.new("I;16", (6, 6), 40000).save(folder / name)
        with pytest.raises(DataError, match=name + ": expected an image, got .*more than 8 bits"):
            load_dataset(one)
        (folder / name).unlink()
    red.save(folder / "zz.png")
    with pytest.raises(DataError, match=r"zz.png: expected an image, got .*one in colour, RGB"):
        load_dataset(one)  # a rare one, which was not looked at
    for path in [*folder.iterdir()][1:]:
        red.save(path)
    made = load_dataset(one)
    assert made.train_x.shape[1:] == made.test_x.shape[1:] == (6, 6, 3)
    assert (made.train_x == [255, 0, 0]).all((1, 2, 3)).sum() >= 10


def test_records_of_tfds_are_read_by_workers(config):
    own = dataclasses.replace(config["tfds"], stream=True, workers=1)
    resident = load_dataset(config["tfds"])
    np.testing.assert_array_equal(load_dataset(own).train_x.read([3, 1]), resident.train_x[[3, 1]])


def test_labels_in_the_cache_are_found_by_a_purge(config, tmp_path):
    made = load_dataset(dataclasses.replace(config["tfds"], stream=True))
    (meta,) = (tmp_path / "cache").glob("*/meta.json")
    found = json.loads(meta.read_text())
    assert found["fingerprint"] == made.fingerprint
    load_dataset(config["tfds"])  # and the decoded ones, of the same source
    both = [json.loads(one.read_text()) for one in (tmp_path / "cache").glob("*/meta.json")]
    assert len(both) == 2
    for one in both:
        assert one["source"]["name"] == config["tfds"].name
        assert Path(one["source"]["folder"]).is_dir()


def test_what_is_wrong_with_a_folder_is_told(photos, config):
    def fails(words, kind="photos", **fields):
        with pytest.raises(DataError, match=words):
            load_dataset(dataclasses.replace(config[kind], **fields))

    (photos / "train" / "kind 0" / "none.png").write_bytes(b"text")
    fails("none.png: expected an image, got")
    (photos / "train" / "kind 0" / "none.png").unlink()
    Image.new("L", (5, 5)).save(photos / "train" / "kind 1" / "small.png")
    fails(r"expected examples of one form, uint8 \[6, 6, 1\], got uint8 \[5, 5, 1\].*image_size")
    assert load_dataset(dataclasses.replace(config["photos"], image_size=4)).train_x.shape[1] == 4
    (photos / "test" / "kind 9").mkdir()
    fails(r"expected classes of the training split, found \['kind 9'\]")
    fails("data.stream: expected data that are read one by one", kind="tfds", stream=True,
          name="digits", dir=None)  # fmt: skip
