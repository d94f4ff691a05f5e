"""Every source gives well-formed arrays, and every fault in a source is named."""

import functools
import hashlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxunlearn as ju
from jaxunlearn.cli import main
from jaxunlearn.config import DataConfig
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import ConfigError, DataError
from jaxunlearn.data import dataset
from jaxunlearn.data.dataset import ARRAYS, check_differ, make_dataset, part_statistics
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.data.sets import divide, num_examples, stratified_mask
from jaxunlearn.data.sources import SOURCES, load_dataset, register_source, tfds, tfds_decode
from jaxunlearn.models import NETWORKS, Network

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tfds"
COUNTS = {"train": (12, 12), "test": (16,)}  # examples of each shard: 40 in all
SIZE = 12
GOLDEN_DIGITS = "4ba888f92a2a78f6"


# A data set in TFDS layout, small enough to make anew for every test


def write_tfds(root, name="shapes", *, shape=(SIZE, SIZE, 1), splits=None, sizes=None, **features):
    """Writes a prepared folder and returns it with the images and labels of each split."""
    pytest.importorskip("array_record")
    splits = splits or COUNTS
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    truth, rng = {}, np.random.RandomState(0)
    for split, counts in splits.items():
        sides = sizes or [(SIZE, SIZE)] * sum(counts)
        x = [
            rng.randint(0, 256, (*sides[i], shape[-1])).astype(np.uint8) for i in range(len(sides))
        ]
        y = np.arange(sum(counts)) % 3
        truth[split] = (x, y)
        ends = np.cumsum(counts)
        for index, (count, end) in enumerate(zip(counts, ends, strict=True)):
            path = folder / f"{name}-{split}.array_record-{index:05d}-of-{len(counts):05d}"
            write_shard(path, x[end - count : end], y[end - count : end])
    write_info(folder, name, splits, shape, **features)
    return folder, truth


def write_shard(path, images, labels):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for image, label in zip(images, labels, strict=True):
        png = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "PNG")
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(png.getvalue())
        example.features.feature["label"].int64_list.value.append(int(label))
        writer.write(example.SerializeToString())
    writer.close()


def write_info(folder, name, splits, shape, classes=3, image="image"):
    package = "tensorflow_datasets.core.features"
    dimensions = ["-1" if d is None else str(d) for d in shape]
    features = {
        image: {
            "image": {"dtype": "uint8", "shape": {"dimensions": dimensions}},
            "pythonClassName": f"{package}.image_feature.Image",
        },
        "label": {
            "classLabel": {"numClasses": str(classes)},
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
        },
    }
    info = {
        "fileFormat": "array_record",
        "name": name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "shardLengths": [str(n) for n in counts],
            }
            for split, counts in splits.items()
        ],
        "version": "1.0.0",
    }
    tree = {
        "featuresDict": {"features": features},
        "pythonClassName": f"{package}.features_dict.FeaturesDict",
    }
    (folder / "features.json").write_text(json.dumps(tree))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "label.labels.txt").write_text("circle\nsquare\nstar\n")


def edit_info(folder, edit):
    info = json.loads((folder / "dataset_info.json").read_text())
    edit(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture
def config(tmp_path):
    """A function: configuration of a set below the test's own folder and cache."""

    def make(name="shapes", **fields):
        fields = {"dir": str(tmp_path / "tfds"), "cache": str(tmp_path / "cache"), **fields}
        return DataConfig(name=name, **fields)

    return make


@pytest.fixture
def shapes(tmp_path):
    return write_tfds(tmp_path / "tfds")


@pytest.fixture
def no_tfds(monkeypatch):
    """As if tensorflow_datasets were not installed."""
    for module in [m for m in sys.modules if m.split(".")[0] == "tensorflow_datasets"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)


def assert_same(a, b):
    for field, left, right in zip(a._fields, a, b, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=field, strict=field.endswith(("x", "y")))


def fails(config, *words):
    """Loading raises a DataError that says all these words."""
    with pytest.raises(DataError) as caught:
        load_dataset(config)
    for word in words:
        assert str(word) in str(caught.value)


# The embedded digits


def test_digits_have_the_documented_form():
    d = load_dataset(DataConfig())
    assert d.train_x.shape == (997, 8, 8, 1)
    assert d.test_x.shape == (800, 8, 8, 1)
    assert d.train_x.dtype == d.test_x.dtype == np.uint8
    assert d.train_y.dtype == d.test_y.dtype == np.int32
    assert d.class_names == tuple("0123456789")
    assert d.train_x.min() == 0
    assert d.train_x.max() == 255
    assert d.mean.shape == d.std.shape == (1, 1, 1)
    assert d.mean.dtype == d.std.dtype == np.float32
    np.testing.assert_allclose(d.mean, d.train_x.mean(), rtol=1e-6)
    np.testing.assert_allclose(d.std, d.train_x.std(), rtol=1e-6)


def test_digits_split_is_fixed_stratified_and_disjoint():
    from sklearn.datasets import load_digits

    d, again = load_dataset(DataConfig()), load_dataset(DataConfig(seed=5))
    assert_same(d, again)
    images, y = load_digits(return_X_y=True)
    # together the two splits are the 1,797 images, each as often as it occurs
    rows = np.concatenate([d.train_x, d.test_x]).reshape(1797, 64)
    whole = np.rint(images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, whole))
    share = np.bincount(d.test_y) - 800 / 1797 * np.bincount(y)
    assert np.abs(share).max() <= 1
    # golden: another split would make runs incomparable without anybody noticing
    assert d.fingerprint.startswith(GOLDEN_DIGITS)


def test_digits_can_be_resized():
    d = load_dataset(DataConfig(image_size=16))
    assert d.train_x.shape == (997, 16, 16, 1)
    assert d.train_x.dtype == np.uint8
    plain = load_dataset(DataConfig())
    np.testing.assert_allclose(d.train_x.mean(), plain.train_x.mean(), rtol=0.02)
    assert d.fingerprint != plain.fingerprint
    fails(DataConfig(image_size=0), "data.image_size", "positive", "got 0")


# Folders in TFDS layout


def test_folder_is_decoded_in_order(shapes, config):
    _, truth = shapes
    d = load_dataset(config())
    for split in ("train", "test"):
        x, y = truth[split]
        np.testing.assert_array_equal(getattr(d, f"{split}_x"), x, strict=True)
        np.testing.assert_array_equal(getattr(d, f"{split}_y"), y.astype(np.int32), strict=True)
    assert d.class_names == ("circle", "square", "star")


def test_colour_has_statistics_of_each_channel(tmp_path, config):
    write_tfds(tmp_path / "tfds", shape=(SIZE, SIZE, 3))
    d = load_dataset(config())
    assert d.train_x.shape == (24, SIZE, SIZE, 3)
    assert d.mean.shape == (1, 1, 3)
    np.testing.assert_allclose(d.mean[0, 0], d.train_x.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(d.std[0, 0], d.train_x.std(axis=(0, 1, 2)), rtol=1e-6)


def test_validation_serves_as_test(tmp_path, config):
    _, truth = write_tfds(tmp_path / "tfds", splits={"train": (8,), "validation": (6,)})
    np.testing.assert_array_equal(load_dataset(config()).test_x, truth["validation"][0])


def test_differing_shapes_need_image_size(tmp_path, config):
    sides = [(SIZE, SIZE + i % 4) for i in range(8)]
    write_tfds(
        tmp_path / "tfds", shape=(None, None, 3), splits={"train": (8,), "test": (8,)}, sizes=sides
    )
    fails(config(), "one shape", "(12, 12, 3)", "(12, 13, 3)", "data.image_size=")
    assert load_dataset(config(image_size=10)).train_x.shape == (8, 10, 10, 3)


def test_highest_version_is_taken_unless_named(tmp_path, shapes, config):
    folder, _ = shapes
    newer = folder.with_name("1.10.0")
    os.rename(folder, newer)
    write_tfds(tmp_path / "other", splits={"train": (4,), "test": (4,)})
    os.rename(tmp_path / "other" / "shapes" / "1.0.0", folder.with_name("1.9.0"))
    assert len(load_dataset(config()).train_x) == 24
    assert len(load_dataset(config("shapes:1.9.0")).train_x) == 4
    fails(config("shapes:2.0.0"), "version", "1.10.0, 1.9.0")


def test_default_folder_of_tfds_is_read(tmp_path, shapes, config, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert len(load_dataset(config(dir=None)).train_x) == 24


# The cache


def test_second_load_is_equal_and_needs_no_tfds(shapes, config, no_tfds, monkeypatch):
    fails(config(), "tensorflow_datasets cannot be imported", "pip install", "digits")
    with monkeypatch.context() as present:
        present.delitem(sys.modules, "tensorflow_datasets")
        first = load_dataset(config())
    assert_same(load_dataset(config()), first)


def test_changed_source_is_not_served_stale(shapes, config):
    folder, truth = shapes
    before = load_dataset(config())
    x, y = truth["test"]
    write_shard(folder / "shapes-test.array_record-00000-of-00001", [255 - i for i in x], y)
    after = load_dataset(config())
    np.testing.assert_array_equal(after.test_x, 255 - before.test_x)
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("size", [None, 6])
def test_fingerprint_follows_the_contents(shapes, config, tmp_path, size):
    folder, _ = shapes
    first = load_dataset(config(image_size=size))
    os.utime(folder / "shapes-test.array_record-00000-of-00001", (1, 1))
    elsewhere = load_dataset(config(image_size=size, cache=str(tmp_path / "cache2")))
    assert first.fingerprint == elsewhere.fingerprint
    assert len(first.fingerprint) == 64


@pytest.mark.parametrize(
    "damage", ["cut", "flip", "empty", "remove", "json", "meta", "mean", "std"]
)
def test_damaged_entry_is_rebuilt(shapes, config, tmp_path, damage):
    first = load_dataset(config())
    (entry,) = (tmp_path / "cache").iterdir()
    array, meta = entry / "train_x.npy", entry / "meta.json"
    content = array.read_bytes()
    if damage == "cut":
        array.write_bytes(content[:-100])
    elif damage == "flip":
        array.write_bytes(content[:-100] + bytes(100))
    elif damage == "empty":
        array.write_bytes(b"")
    elif damage == "remove":
        array.unlink()
    elif damage in ("mean", "std"):
        told = json.loads(meta.read_text())
        told[damage] = [number + 1 for number in told[damage]]
        meta.write_text(json.dumps(told))
    else:
        meta.write_text("{" if damage == "json" else "[]")
    assert_same(load_dataset(config()), first)
    assert array.read_bytes() == content
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]


def test_unwritable_cache_is_a_warning(shapes, config, tmp_path):
    # a file where the folder should be: that stops root as well
    (tmp_path / "cache").write_text("")
    with pytest.warns(UserWarning, match="cannot write the cache folder"):
        assert len(load_dataset(config()).train_x) == 24


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    from jaxunlearn.data.dataset import cache_root

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("JAXUNLEARN_CACHE", raising=False)
    assert cache_root(None) == tmp_path / ".cache" / "jaxunlearn"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root(None) == tmp_path / "xdg" / "jaxunlearn"
    monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "own"))
    assert cache_root(None) == tmp_path / "own"
    assert cache_root("~/given") == tmp_path / "given"


# Faults of a folder


def test_missing_folders(shapes, config, tmp_path):
    fails(config(dir=str(tmp_path / "nowhere")), "data.dir", tmp_path / "nowhere")
    fails(
        config("shape"),
        tmp_path / "tfds" / "shape",
        "only shapes",
        *SOURCES,
        "did you mean 'shapes'",
    )
    fails(config("mnist"), tmp_path / "tfds" / "mnist", "unset data.dir")
    (tmp_path / "tfds" / "hollow").mkdir()
    fails(config("hollow"), tmp_path / "tfds" / "hollow", "such as 1.0.0", "nothing")


def test_half_folder(shapes, config):
    folder, _ = shapes
    (folder / "features.json").unlink()
    fails(config(), folder, "features.json", "dataset_info.json")
    (folder / "dataset_info.json").unlink()
    fails(config(), folder, "dataset_info.json", "shapes-test.array_record")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_broken_metadata(shapes, config, text):
    folder, _ = shapes
    (folder / "dataset_info.json").write_text(text)
    fails(config(), folder / "dataset_info.json", "JSON")


def test_missing_and_empty_shard(shapes, config):
    folder, _ = shapes
    shard = folder / "shapes-train.array_record-00001-of-00002"
    shard.write_bytes(b"")
    fails(config(), shard, "12 examples", "empty file")
    shard.unlink()
    fails(config(), folder, "2 shards", "train", "found 1", shard.name)


@pytest.mark.parametrize("keep", [1000, 65536, -100])
def test_truncated_shard(shapes, config, keep):
    folder, _ = shapes
    shard = folder / "shapes-train.array_record-00001-of-00002"
    load_dataset(config())
    shard.write_bytes(shard.read_bytes()[:keep])
    fails(config(), shard, "12 examples", "found 0")


def test_damaged_record(shapes, config):
    folder, _ = shapes
    shard = folder / "shapes-train.array_record-00000-of-00002"
    content = shard.read_bytes()
    at = content.index(b"IHDR") if b"IHDR" in content else 1000
    shard.write_bytes(content[:at] + b"\xff" * 40 + content[at + 40 :])
    fails(config(), folder, "split train", "damaged")


def test_wrong_count(shapes, config):
    folder, _ = shapes
    edit_info(folder, lambda info: info["splits"][0].update(shardLengths=["12", "13"]))
    fails(config(), "00001-of-00002", "13 examples", "found 12")
    edit_info(folder, lambda info: info["splits"][0].update(shardLengths=[]))
    fails(config(), folder, "shardLengths", "train")


def test_wrong_format_and_splits(shapes, config):
    folder, _ = shapes
    edit_info(folder, lambda info: info["splits"][1].update(name="extra"))
    fails(config(), folder, "train and test (or validation)", "found train, extra")
    edit_info(folder, lambda info: info.update(fileFormat="tfrecord"))
    fails(config(), folder, "array_record", "found tfrecord")


def test_wrong_features(tmp_path, config):
    write_tfds(tmp_path / "tfds", image="picture")
    fails(config(), "features image", "picture: Image", "label: ClassLabel")


@pytest.mark.parametrize(
    "name",
    ["own_features.Image", "os.system", "tensorflow_datasets.core.features.x;y", "", "..",
     "builtins", "tensorflow_datasets.testing.Image", "x" * 9999,
     "tensorflow_datasets.core.features."],
)  # fmt: skip
@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_class_of_another_package_is_not_imported(shapes, config, no_tfds, name, key):
    """Neither TFDS nor what the file names, however deep."""
    file = shapes[0] / "features.json"
    told = json.loads(file.read_text())
    told["featuresDict"]["features"]["more"] = {"sequence": {"inner": [{key: name}]}}
    file.write_text(json.dumps(told))
    fails(config(), "features.json: expected features of TFDS's own", "which is not imported")


@pytest.mark.parametrize(
    "edit",
    [{"splits": 3}, {"splits": ["x"]}, {"splits": [{}]}, {"alternativeFileFormats": 3},
     {"splits": [{"name": "train", "shardLengths": ["x"]}, {"name": "test"}]}],
)  # fmt: skip
def test_metadata_of_another_form(shapes, config, no_tfds, edit):
    edit_info(shapes[0], lambda info: info.update(edit))
    fails(config(), "dataset_info.json: expected what TFDS writes")


def test_a_half_written_entry_is_removed_after_an_hour(shapes, config, tmp_path):
    load_dataset(config())
    cache = tmp_path / "cache"
    (entry,) = cache.iterdir()
    (entry / "meta.json").unlink()
    old, new = (cache / f".{entry.name}-{digit * 32}" for digit in "ab")
    mine = cache / f".{entry.name}-mine"
    for path in (old, new, mine):
        path.mkdir()
        os.utime(path, (1, 1) if path != new else None)
    load_dataset(config())
    assert sorted(cache.iterdir()) == sorted([entry, new, mine])


def test_images_beyond_the_memory_are_not_made(config, monkeypatch):
    monkeypatch.setattr("jaxunlearn.data.dataset.most_bytes", lambda: 10**6)
    fails(config("digits", image_size=512), "data.image_size: expected images of at most 1,000,000")


def test_labels_out_of_range(tmp_path, config):
    write_tfds(tmp_path / "tfds", classes=2)
    (tmp_path / "tfds" / "shapes" / "1.0.0" / "label.labels.txt").unlink()
    fails(config(), "split train", "labels from 0 to 1", "got 2 at position 2")


# Names


@pytest.mark.parametrize("name", ["digit", "../shapes", "", "a b", "/abs/shapes"])
def test_unknown_name_lists_the_known(config, name):
    fails(config(name, dir=None), *SOURCES, ".npz", repr(name))


def test_unknown_name_has_a_hint(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    fails(config("mnits", dir=None), "did you mean 'mnist'")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
def test_preparing_without_tensorflow_says_what_to_do(config, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    fails(config("mnist", dir=None), "tensorflow", "pip install 'jaxunlearn[prepare]'", "data.dir")


def test_failed_download_says_what_to_do(monkeypatch):
    class Builder:
        data_path = "somewhere/mnist"

        def download_and_prepare(self, **_):
            raise ConnectionError("no route")

    monkeypatch.setattr(tfds_decode, "_installed", lambda module: True)
    with pytest.raises(DataError, match=r"no route.*network.*data\.dir"):
        tfds_decode._download(Builder(), "mnist")


def test_import_is_light():
    code = (
        "import sys, jaxunlearn.data.sources\n"
        "heavy = {'tensorflow_datasets', 'tensorflow', 'sklearn', 'array_record', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


# Sources of one's own


def words_of(config, size=4):
    """Token sequences with a mask: what a package of one's own might bring."""
    rng = np.random.default_rng(config.seed)

    def split(count):
        tokens = rng.integers(0, 9, (count, 4))
        return {"tokens": tokens, "mask": tokens > 2}, np.arange(count) % 2

    (train_x, train_y), (test_x, test_y) = split(3 * size), split(2 * size)
    arrays = {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}
    return make_dataset(arrays, ["even", "odd"])


def bag_of_words(inputs, num_classes):
    """A network that takes such inputs; ``inputs`` are their shapes and dtypes."""
    assert inputs["mask"].dtype == bool

    def apply(variables, x):
        weight = x["mask"].astype(jnp.float32)[..., None]
        bag = jnp.sum(variables["table"][x["tokens"]] * weight, axis=1)
        return bag @ variables["head"]

    def init(key):
        table, head = jax.random.split(key)
        return {
            "table": jax.random.normal(table, (9, 8)),
            "head": jax.random.normal(head, (8, num_classes)),
        }

    return ju.functionalize(apply, init=init)


@pytest.fixture
def own_source(monkeypatch):
    """A function: registers a source for one test."""

    def register(name, target, **options):
        monkeypatch.setattr(SOURCES, "_rows", dict(SOURCES._rows))
        register_source(name, target, **options)

    return register


def test_a_run_on_a_source_of_ones_own(own_source, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(NETWORKS, "_rows", dict(NETWORKS._rows))
    NETWORKS.register("bag", Network(f"{__name__}:bag_of_words", "a bag of words"))
    own_source("words", functools.partial(words_of, size=20))
    chosen = ["data.name=words", "data.unseen=10", "model.name=bag", "request.classes=1"]
    small = ["train.epochs=10", "train.batch_size=20", "retrained=1", "methods=finetune"]
    assert main(["run", "name=words", *chosen, *small, "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "- bag, " in out
    assert "inputs [4], batches of" in out
    report = json.loads((tmp_path / "words" / "report.json").read_text())
    assert report["rows"]


def test_a_source_is_one_function_and_one_row(own_source, capsys, tmp_path, monkeypatch):
    (tmp_path / "their_words.py").write_text("from tests.data.test_sources import words_of as load")
    monkeypatch.syspath_prepend(tmp_path)
    own_source("words", "their_words:load", summary="words, none of them true")
    config = load_config(None, ["data.name=words", "data.seed=3"])
    data = load_dataset(config.data)
    assert data.train_x["tokens"].shape == (12, 4)
    assert (data.mean, data.class_names) == (None, ("even", "odd"))
    assert data.fingerprint == words_of(DataConfig(seed=3)).fingerprint
    assert data.fingerprint != load_dataset(DataConfig(name="words")).fingerprint
    assert main(["list"]) == 0
    assert "words                words, none of them true" in capsys.readouterr().out
    fails(DataConfig(name="wordz", dir=str(tmp_path)), "built in are", "did you mean 'words'")


def test_a_set_of_trees_is_divided(own_source):
    own_source("words", words_of)
    data = load_dataset(DataConfig(name="words"))
    held = stratified_mask(data.test_y, 4, seed=0)
    sets = divide(data, held, [ju.forget_class(0), ju.forget_class(1)])
    assert sets.forget.examples.x["mask"].dtype == bool
    assert sets.forget.indices.shape == (2, 6)
    np.testing.assert_array_equal(sets.unseen.size, [2, 2])
    # labels that are sequences, and a reader of one's own
    arrays = {key: getattr(data, key) for key in ARRAYS}
    arrays |= {"train_y": data.train_x["tokens"], "test_y": data.test_x["tokens"]}
    own = make_dataset(arrays, labels="any", reader=lambda x: x["tokens"])
    held = stratified_mask(own.test_y, 4, seed=0)
    sets = divide(own, held, [ju.data.forget_random(0.25)])
    assert inputs_like(sets.retain).shape == (1, 4)
    assert sets.retain.examples.y.shape == (12, 4)
    assert held.sum() == num_examples(sets.holdout) == num_examples(sets.test_retain) == 4


def test_what_is_wrong_with_a_source_is_told(own_source):
    own_source("none", lambda config: None)
    with pytest.raises(TypeError, match=r"data\.name=none: expected Dataset, got NoneType"):
        load_dataset(DataConfig(name="none"))
    with pytest.raises(ConfigError, match="data: expected a name not yet taken, got 'digits'"):
        own_source("digits", words_of)


# Files of one's own


def good(**changes):
    arrays = {
        "train_x": np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3),
        "train_y": np.array([0, 1, 2, 0, 1, 2]),
        "test_x": np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3),
        "test_y": np.array([2, 1, 0], np.uint8),
    }
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


@pytest.fixture
def npz(tmp_path):
    """A function: configuration of a file with these arrays."""

    def make(arrays, **fields):
        np.savez(tmp_path / "own.npz", **arrays)
        return DataConfig(name=str(tmp_path / "own.npz"), **fields)

    return make


def test_npz_of_one_image_over_and_over(npz):
    arrays = good()
    fails(
        npz({**arrays, "train_x": np.broadcast_to(arrays["train_x"][:1], arrays["train_x"].shape)}),
        "train_x: expected examples that differ, got",
    )


@pytest.mark.parametrize("x", [np.ones((6, 4, 5, 3)), np.ones((6, 4)), {"a": np.arange(6) * 0}])
def test_a_source_of_one_example_over_and_over(own_source, x):
    arrays = {"train_x": x, "train_y": np.arange(6), "test_x": x, "test_y": np.arange(6)}
    own_source("alike", lambda config: make_dataset(arrays, list("abcdef")))
    with pytest.raises(DataError, match="train_x: expected examples that differ, got 6 alike"):
        load_dataset(DataConfig(name="alike"))


def test_examples_that_differ_late_are_not_alike():
    for place in (1, 2, 257, 258, 599):
        x, other = np.zeros((600, 3)), np.zeros((600, 2))
        x[place] = 1
        check_differ("x", [x, other])
    with pytest.raises(DataError, match="x: expected examples that differ, got 600 alike"):
        check_differ("x", [np.zeros((600, 3)), other])
    check_differ("x", [np.zeros((1, 3))])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_with_channels_first_have_statistics_of_each_channel(npz, channels):
    x = (
        np.random.default_rng(0).normal(3, 2, (9, channels, 6, 5))
        * np.arange(1, channels + 1)[:, None, None]
    )
    d = load_dataset(npz(good(train_x=x[:6], test_x=x[6:])))
    assert d.mean.shape == d.std.shape == (channels, 1, 1)
    last = load_dataset(
        npz(good(train_x=np.moveaxis(x[:6], 1, -1), test_x=np.moveaxis(x[6:], 1, -1)))
    )
    for own, other in ((d.mean, last.mean), (d.std, last.std)):
        np.testing.assert_allclose(own.ravel(), other.ravel(), rtol=1e-6)
    parts = part_statistics(x, [np.arange(4), np.arange(3, 9)])
    for (mean, std), rows in zip(parts, (x[:4], x[3:]), strict=True):
        assert mean.shape == (channels, 1, 1)
        np.testing.assert_allclose(mean.ravel(), rows.mean((0, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(std.ravel(), rows.std((0, 2, 3)), rtol=1e-5)


def test_npz_images(npz):
    d = load_dataset(npz(good()))
    np.testing.assert_array_equal(d.train_x, good()["train_x"], strict=True)
    np.testing.assert_array_equal(d.test_y, np.array([2, 1, 0], np.int32), strict=True)
    assert d.class_names == ("0", "1", "2")
    assert d.mean.shape == (1, 1, 3)


def test_npz_grey_and_resized(npz):
    grey = {k: good()[k][..., 0] for k in ("train_x", "test_x")}
    assert load_dataset(npz(good(**grey))).train_x.shape == (6, 4, 5, 1)
    assert load_dataset(npz(good(**grey), image_size=8)).test_x.shape == (3, 8, 8, 1)
    floats = {k: good()[k].astype(np.float64) for k in ("train_x", "test_x")}
    d = load_dataset(npz(good(**floats), image_size=8))
    assert d.train_x.shape == (6, 8, 8, 3)
    assert d.train_x.dtype == np.float32


def test_npz_vectors_with_a_constant_column(npz):
    x = np.random.RandomState(0).randn(9, 4)
    x[:, 2] = 0.1
    d = load_dataset(npz(good(train_x=x[:6], test_x=x[6:])))
    assert d.train_x.dtype == np.float32
    assert d.train_x.shape == (6, 4)
    assert d.mean.shape == d.std.shape == (4,)
    np.testing.assert_allclose(d.mean, x[:6].mean(0), rtol=1e-5)
    assert d.std[2] == 1
    assert (d.std > 0).all()
    fails(npz(good(train_x=x[:6], test_x=x[6:]), image_size=8), "image_size", "vectors")


def test_npz_integers_become_bytes_and_names_are_read(npz):
    names = np.array(["a", "b", "c", "never seen"])
    x = {k: good()[k].astype(np.int64) for k in ("train_x", "test_x")}
    d = load_dataset(npz(good(**x, class_names=names)))
    assert d.train_x.dtype == np.uint8
    assert d.class_names == tuple(names)
    assert d.fingerprint != load_dataset(npz(good(**x))).fingerprint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_y": None}, ["keys", "test_y", "got train_x, train_y, test_x"]),
        ({"train_x": np.zeros(6)}, ["train_x", "shape [N, D]", "got [6]"]),
        ({"train_x": np.zeros((0, 4, 5, 3))}, ["train_x", "got [0, 4, 5, 3]"]),
        ({"train_x": np.full((6, 4), np.nan)}, ["train_x", "finite", "6 examples"]),
        ({"train_x": np.full((6, 4), 1e300)}, ["train_x", "finite", "float32"]),
        ({"train_x": np.full((6, 4), 256)}, ["train_x", "0 to 255", "got 256"]),
        ({"train_x": np.full((6, 4), -1)}, ["train_x", "0 to 255", "got -1"]),
        ({"train_x": np.zeros((6, 4), bool)}, ["train_x", "dtype", "got bool"]),
        ({"train_x": np.zeros((6, 4), complex)}, ["train_x", "dtype", "got complex"]),
        ({"test_x": np.zeros((3, 4, 5, 1), np.uint8)}, ["test_x", "[N, 4, 5, 3]", "[N, 4, 5, 1]"]),
        ({"test_x": np.zeros((3, 4, 5, 3))}, ["test_x", "uint8", "got float32"]),
        ({"train_y": np.zeros(6)}, ["train_y", "integer", "got float64"]),
        ({"train_y": np.zeros((6, 1), int)}, ["train_y", "[6]", "got [6, 1]"]),
        ({"train_y": np.zeros(5, int)}, ["train_y", "[6]", "got [5]"]),
        ({"train_y": np.array([0, 1, 2, 0, 1, -1])}, ["train_y", "got -1 at position 5"]),
        ({"train_y": np.array([0, 1, 2, 0, 1, 2**32])}, ["train_y", "got 4294967296"]),
        ({"train_y": np.array([1, 2, 3, 1, 2, 3])}, ["train_y", "every label", "none of 0"]),
        ({"train_y": np.array([0, 1, 2, 0, 1, 10**9])}, ["train_y", "every label", "none of 3"]),
        ({"test_y": np.array([0, 1, 3])}, ["test_y", "0 to 2", "got 3 at position 2"]),
        ({"class_names": np.array(["a", "b"])}, ["train_y", "0 to 1", "got 2"]),
        ({"class_names": np.array([1, 2, 3])}, ["class_names", "strings", "int64"]),
        ({"class_names": np.array(["a", None, "c"], object)}, ["class_names", "cannot be read"]),
        ({"train_x": np.array([[1]] * 6, object)}, ["train_x", "cannot be read"]),
    ],
)
def test_npz_faults_name_file_and_key(npz, changes, words):
    fails(npz(good(**changes)), "own.npz", "expected", "got", *words)


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "own.npz"
    fails(DataConfig(name=str(path)), path, "nothing")
    for content in (b"", b"text", pickle.dumps(1)):
        path.write_bytes(content)
        fails(DataConfig(name=str(path)), path, ".npz archive")
    np.savez(path, **good())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    fails(DataConfig(name=str(path)), path, ".npz archive")
    at = content.index(b"NUMPY") + 200
    path.write_bytes(content[:at] + b"\x00\x01\x02" + content[at + 3 :])
    fails(DataConfig(name=str(path)), path, "train_x", "cannot be read")
    path.unlink()
    path.mkdir()
    fails(DataConfig(name=str(path)), path, "a folder")


# The real sets


@pytest.fixture
def kept(pytestconfig):
    """A folder for decoded sets that outlives the run; another one for other code that decodes."""
    decoders = [dataset, tfds, tfds_decode]
    code = b"".join(Path(module.__file__).read_bytes() for module in decoders)
    folder = pytestconfig.cache.mkdir(f"decoded-{hashlib.sha256(code).hexdigest()[:12]}")
    for old in folder.parent.glob("decoded-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return folder


@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason="no prepared MNIST beside the repository")
def test_mnist(kept):
    config = DataConfig(name="mnist", dir=str(REAL), cache=str(kept))
    first = load_dataset(config)
    assert first.train_x.shape == (60000, 28, 28, 1)
    assert first.test_x.shape == (10000, 28, 28, 1)
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(first.train_y).tolist() == train
    assert np.bincount(first.test_y).tolist() == test
    np.testing.assert_allclose(first.mean / 255, [[[0.1307]]], atol=1e-4)
    np.testing.assert_allclose(first.std / 255, [[[0.3081]]], atol=1e-4)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        again = load_dataset(config)
        seconds.append(time.perf_counter() - start)
    assert_same(again, first)
    assert min(seconds) < 1


@pytest.mark.skipif(
    not (REAL / "tiny_shakespeare").is_dir(), reason="no prepared plays beside the repository"
)
def test_a_text_set_is_refused_where_images_are_read(tmp_path):
    config = DataConfig(name="tiny_shakespeare", dir=str(REAL), cache=str(tmp_path))
    fails(config, "image set", "text: Text")
