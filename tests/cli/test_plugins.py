"""An installed package brings rows of every kind by entry points; a broken one is named."""

import contextlib
import importlib
import importlib.metadata
import json
import sys

import pytest

import jaxunlearn as ju
from jaxunlearn import config as sections
from jaxunlearn.cli import main
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.data.sources import SOURCES
from jaxunlearn.kinds import KINDS, Kind, Row
from jaxunlearn.methods import METHODS
from jaxunlearn.metrics import METRICS
from jaxunlearn.models import NETWORKS
from jaxunlearn.pictures import PICTURES
from tests.runs import hurry

REGISTRIES = (KINDS, METHODS, METRICS, NETWORKS, PICTURES, SOURCES)

PACKAGE = '''
"""A package of others: a method, a metric, a network, data, a picture and a kind of models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from jaxunlearn.core.types import Info, Needs, Unlearner
from jaxunlearn.kinds.classifier import Classifier


def shrink(model, *, factor: float = 0.5):
    def step(state, batches, key, count):
        return jax.tree.map(lambda leaf: leaf * factor, state), Info({}, jnp.bool_(True))

    return Unlearner(lambda v, sets, key: v, step, lambda state: state, Needs(forget=True))


def widest(evidence):
    return max(float(abs(leaf).max()) for leaf in jax.tree.leaves(evidence.weights))


def flat(shape, num_classes, *, scale: float = 1.0):
    size = int(np.prod(shape))

    def apply(variables, x):
        return x.reshape(len(x), size) @ variables["params"]["kernel"]

    def init(key):
        kernel = jax.random.normal(key, (size, num_classes)) * scale / size**0.5
        return {"params": {"kernel": kernel}}

    return ju.functionalize(apply, init=init)


def three(config):
    rng = np.random.default_rng(config.seed)

    def split(count):
        y = np.arange(count, dtype=np.int32) % 3
        return (rng.normal(size=(count, 6)) + 2 * np.eye(3, 6)[y]).astype(np.float32), y

    (x, y), (test_x, test_y) = split(90), split(60)
    arrays = {"train_x": x, "train_y": y, "test_x": test_x, "test_y": test_y}
    return ju.data.make_dataset(arrays, ["red", "green", "blue"])


def save_sizes(path, sizes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(repr(sizes))


def draw_sizes(path, view, label):
    save_sizes(path, sorted(view.variables))


@dataclasses.dataclass(frozen=True)
class SignConfig:
    gain: float = 1.0


class Signs(Classifier):
    name = "sign"
    summary = "classifiers of theirs"
    section = SignConfig

    def owns(self, model):
        return False  # their networks are those of classifiers


METHOD = ju.methods.Method("their_package:shrink", "shrinks all weights")
METRIC = ju.metrics.Metric("widest weight", "size", "small", ".2f", widest, ("weights",))
NETWORK = ju.models.Network("their_package:flat", "one layer of theirs")
SOURCE = ju.data.Source("their_package:three", "three kinds of vectors")
PICTURE = ju.pictures.Picture(
    "their_package:save_sizes", "names of models", "their_package:draw_sizes", "classifier"
)
KIND = Signs()
'''

POINTS = """
[jaxunlearn.methods]
shrink = their_package:METHOD
finetune = their_package:METHOD
[jaxunlearn.metrics]
widest = their_package:METRIC
accuracy_retain = their_package:METRIC
[jaxunlearn.networks]
flat = their_package:NETWORK
[jaxunlearn.data]
three = their_package:SOURCE
[jaxunlearn.pictures]
sizes = their_package:PICTURE
[jaxunlearn.kinds]
sign = their_package:KIND
"""

ROWS = [
    (METHODS, "shrink", "shrinks all weights"),
    (METRICS, "widest", "widest weight"),
    (NETWORKS, "flat", "one layer of theirs"),
    (SOURCES, "three", "three kinds of vectors"),
    (PICTURES, "sizes", "names of models"),
    (KINDS, "sign", "classifiers of theirs"),
]
WORDS = [
    "data.name=three", "data.unseen=15", "model.name=flat", "model.options.scale=0.5",
    "train.epochs=2", "train.batch_size=30", "request.classes=1", "retrained=1",
    "methods=shrink", "methods.shrink.steps=2", "methods.shrink.factor=0.25",
]  # fmt: skip


def install(folder, points, code=PACKAGE):
    """Puts a package where an installer would: its modules, and what it says of itself."""
    (folder / "their_package.py").write_text(code)
    about = folder / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(points)
    return folder


@contextlib.contextmanager
def installed(folder):
    """Registries that look for entry points anew, and forget what they found after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for registry in REGISTRIES:
            patch.setattr(registry, "_rows", dict(registry._rows))
            patch.setattr(registry, "_points", None)
        patch.setattr(sections, "SECTIONS", dict(sections.SECTIONS))
        patch.setattr("jaxunlearn.config.overrides.SECTIONS", sections.SECTIONS)
        hurry(patch, pictures=True)
        patch.delitem(sys.modules, "their_package", raising=False)
        importlib.invalidate_caches()
        yield
    sys.modules.pop("their_package", None)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    with installed(install(tmp_path_factory.mktemp("site"), POINTS)):
        yield


@pytest.mark.usefixtures("theirs")
class TestInstalled:
    @pytest.mark.parametrize(("registry", "name", "line"), ROWS, ids=[r[1] for r in ROWS])
    def test_each_is_found_by_its_name(self, registry, name, line):
        assert name in registry
        assert name in list(registry)
        row = registry.find(name)
        assert isinstance(row, registry.kind)
        assert registry[name] is row, "the same each time"
        assert line in (getattr(row, "summary", ""), getattr(row, "label", ""))

    def test_they_are_listed(self, capsys, tmp_path):
        assert main(["list", "--runs", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        for _, name, line in ROWS:
            assert f"  {name:<20} {line}\n" in shown
        heads = ("methods:", "kinds of models:", "models (classifier):", "data:", "metrics:")
        assert all(f"\n{head}\n" in shown for head in (*heads, "pictures:"))

    def test_built_in_rows_are_not_replaced(self):
        assert METHODS["finetune"].summary == "fine-tune on the retain set"
        assert METRICS["accuracy_retain"].short == "Ag"

    def test_a_run_has_them_all(self, tmp_path, capsys):
        assert main(["run", *WORDS, "--runs", str(tmp_path)]) == 0
        home = tmp_path / "digits"
        report = json.loads((home / "report.json").read_text())
        rows = {row["name"]: row for row in report["rows"]}
        assert report["columns"] == ["original", "shrink", "retrained"]
        widest = rows["widest"]["values"]
        assert widest["shrink"] == pytest.approx(widest["original"] / 16, rel=1e-6)
        assert any(note.startswith("flat, 18 parameters") for note in report["notes"])
        assert (home / "pictures/sizes.png").read_text() == "['original', 'retrained', 'shrink']"
        assert not any("no picture" in note for note in report["notes"])
        assert "widest weight" in capsys.readouterr().out
        assert ju.data.load_dataset(ju.data.DataConfig(name="three")).class_names[0] == "red"

    def test_options_are_checked_as_ours_are(self, tmp_path, capsys):
        for word, message in (
            ("methods.shrink.faktor=1", "did you mean 'factor'"),
            ("methods.shrink.factor=much", "shrink.factor: expected float, got 'much'"),
            ("model.options.skale=1", "did you mean 'scale'"),
            ("methods=shrnk", "did you mean 'shrink'"),
            ("sign.gian=1", "did you mean 'gain'"),
            ("sign.gain=much", "sign.gain: expected float, got 'much'"),
        ):
            assert main(["run", *WORDS, word, "--runs", str(tmp_path)]) == 1
            assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_a_section_of_theirs_is_a_key_of_the_configuration(self, tmp_path):
        KINDS["sign"].kind  # noqa: B018 - imports it, as the command line does
        config = load_config(None, [*WORDS, "sign.gain=2"])
        assert config.kinds["sign"].gain == 2
        with pytest.raises(ConfigError, match=r"kinds\.sign: expected SignConfig, got 3"):
            ju.run(ju.Config(kinds={"sign": 3}), tmp_path)


BROKEN = """
[jaxunlearn.methods]
lost = their_package.nowhere:ROW
odd = their_package:shrink
[jaxunlearn.metrics]
lost_metric = their_package:NOTHING
[jaxunlearn.networks]
lost_network = their_package.nowhere:ROW
[jaxunlearn.pictures]
lost_picture = their_package.nowhere:ROW
[jaxunlearn.data]
lost_source = their_package.nowhere:ROW
[jaxunlearn.kinds]
lost_kind = their_package.nowhere:ROW
"""


@pytest.fixture
def broken(request, tmp_path_factory):
    """A package some of whose entry points lead nowhere; of one group, where it is asked for."""
    points = BROKEN
    if group := getattr(request, "param", None):
        parts = dict(part.split("]\n") for part in BROKEN.strip().split("[")[1:])
        points = f"[jaxunlearn.{group}]\n{parts[f'jaxunlearn.{group}']}"
    with installed(install(tmp_path_factory.mktemp("broken"), points)):
        yield


class TestBroken:
    def test_the_list_names_them_and_goes_on(self, broken, capsys, tmp_path):
        assert main(["list", "--runs", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  ")}
        for name in ("lost", "lost_network", "lost_picture", "lost_source", "lost_kind"):
            assert f"{name}: expected their_package.nowhere:ROW to be a" in lines[name]
            assert "ModuleNotFoundError" in lines[name]
        assert "AttributeError" in lines["lost_metric"]
        assert "expected Method, got function" in lines["odd"]
        for name in ("finetune", "mlp", "digits", "accuracy_forget", "confusions", "gan"):
            assert name in lines

    def test_asked_for_by_name_it_is_an_error_that_names_it(self, broken):
        for registry, name in ((METHODS, "lost"), (NETWORKS, "lost_network"), (METHODS, "odd")):
            with pytest.raises(ConfigError, match=rf"{registry.noun}\.{name}: expected their_pack"):
                registry.find(name)
        assert METHODS.find("finetune").kind == "classifier"

    @pytest.mark.parametrize("broken", ["metrics", "kinds"], indirect=True)
    def test_what_every_run_reads_is_found_before_any_work(self, broken, tmp_path, capsys):
        """A table without its row, or a kind that might own the network, would be a guess."""
        assert main(["run", "methods=finetune", "--runs", str(tmp_path)]) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert ": expected their_package" in message
        assert message.count("\n") == 1
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("broken", ["pictures"], indirect=True)
    def test_a_picture_costs_only_itself(self, broken, tmp_path):
        words = ["methods=finetune", "methods.finetune.steps=1", "train.epochs=0.2", "retrained=1"]
        assert main(["run", *words, "model.options.features=(4,)", "--runs", str(tmp_path)]) == 0
        report = json.loads((tmp_path / "digits/report.json").read_text())
        (note,) = (note for note in report["notes"] if "no picture" in note)
        assert note.startswith(
            "no picture lost_picture: pictures.lost_picture: expected their_pack"
        )
        assert (tmp_path / "digits/pictures/confusions.png").exists()


class TestKinds:
    def test_a_kind_is_its_own_row(self, monkeypatch):
        """An entry point may name the object itself."""
        monkeypatch.setattr(KINDS, "_rows", dict(KINDS._rows))

        class Own(Kind):
            name = "own"
            summary = "one of our own"

        own = Own()
        KINDS.register("own", own)
        assert KINDS["own"] == Row(own, "one of our own")
        assert KINDS["own"].kind is own
        with pytest.raises(TypeError, match=r"kinds\.other: expected Row, got int"):
            KINDS.register("other", 3)
