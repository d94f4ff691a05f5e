import dataclasses
import sys

import pytest

from jaxunlearn import config as parts
from jaxunlearn.config import DEFAULT_METHODS, Config, DataConfig, GanConfig, Request, overrides
from jaxunlearn.config.overrides import (
    apply_overrides,
    check_types,
    find_config,
    list_configs,
    load_bench,
    load_config,
    load_preset,
)
from jaxunlearn.core.errors import ConfigError


def changed(*overrides):
    return apply_overrides(Config(), overrides)


def test_tuples_of_other_kinds_are_read():
    rules = "sharding_rules=(('fc1/kernel', ('model',)),)"
    config = changed("train.betas=0.5,0.9", rules, "request.indices=3,1")
    assert config.train.betas == (0.5, 0.9)
    assert config.sharding_rules == (("fc1/kernel", ("model",)),)
    assert config.request.indices == (3, 1)


def test_nested_keys_of_every_kind():
    config = changed(
        "seed=3", "train.epochs=5", "data.dir=/some/where", "request.classes=3,5",
        "model.options.features=(8,4)", "mesh=fsdp", "data.image_size=16",
    )  # fmt: skip
    assert config.seed == 3
    assert config.train.epochs == 5.0
    assert isinstance(config.train.epochs, float)
    assert config.data.dir == "/some/where"
    assert config.request.classes == (3, 5)
    assert config.model.options == {"features": (8, 4)}
    assert config.data.image_size == 16
    assert Config().train.epochs != 5, "the default is not changed"


def test_each_class():
    """What a file forgets is no choice of classes; what is given beside it is."""
    assert Config().request.classes == (3,)
    assert changed("request.each=true").request == Request(each=True)
    assert changed("model.options={'a': 1}", "model.options.b=2").model.options == {"a": 1, "b": 2}
    assert changed("model.options.a=1", "model.options={}").model.options == {}
    both = Request(classes=(1, 3), each=True)
    assert changed("request.classes=1,3", "request.each=true").request == both
    again = apply_overrides(Config(request=both), ["request.each=true", "seed=1"])
    assert again.request == both
    assert changed("request.each=False").request == Config().request


def test_several_seeds():
    assert changed("seeds=5").seeds == 5
    assert Config().seeds == 1


def test_one_class_and_none():
    assert changed("request.classes=7").request.classes == (7,)
    assert changed("request.classes=").request.classes == ()
    assert changed("data.dir=none").data.dir is None


def test_methods_are_selected_and_keep_their_options():
    config = changed("methods=neuron_path,retrain", "methods.neuron_path.neurons=7")
    assert list(config.methods) == ["neuron_path", "retrain"]
    assert config.methods["neuron_path"]["neurons"] == 7
    tuned = DEFAULT_METHODS["neuron_path"]["per_sample"]
    assert config.methods["neuron_path"]["per_sample"] == tuned
    assert config.methods["retrain"] == {}


def test_no_methods_means_the_tuned_ones_of_the_digits_alone():
    assert Config().methods == {}
    steps = "methods.finetune.steps=7"
    tuned = {**DEFAULT_METHODS, "finetune": {"steps": 7}}
    assert changed(steps).methods == tuned
    assert changed("methods.mine.method=retrain").methods == {
        **DEFAULT_METHODS,
        "mine": {"method": "retrain"},
    }
    # whatever the order in which data and methods are given
    assert changed(steps, "data.name=mnist").methods == {"finetune": {"steps": 7}}
    assert changed("methods=finetune", "data.name=mnist").methods == {"finetune": {}}
    assert changed("methods=finetune").methods == {"finetune": DEFAULT_METHODS["finetune"]}
    own = Config(methods={"retrain": {}})
    assert apply_overrides(own, [steps]).methods == {"retrain": {}, "finetune": {"steps": 7}}


def test_sections_of_kinds_are_set_like_fields():
    config = changed("gan.r1=0.5", "gan.classifier.name=cnn", "kinds.gan.ema=0.9")
    gan = parts.section(config, "gan")
    assert (gan.r1, gan.classifier.name, gan.ema) == (0.5, "cnn", 0.9)
    assert config.kinds == {"gan": gan}
    assert Config().kinds == {}
    assert parts.section(Config(), "gan") == GanConfig()
    assert parts.to_dict(config)["kinds"]["gan"]["classifier"] == {"name": "cnn", "options": {}}
    check_types(config)


@dataclasses.dataclass(frozen=True)
class TreeConfig:
    depth: int = 3
    data: DataConfig = dataclasses.field(default_factory=DataConfig)


@dataclasses.dataclass
class Greedy:
    depth: int


def test_a_section_of_ones_own(monkeypatch):
    monkeypatch.setattr(parts, "SECTIONS", dict(parts.SECTIONS))
    monkeypatch.setattr(overrides, "SECTIONS", parts.SECTIONS)
    parts.register_section("tree", TreeConfig)
    parts.register_section("tree", TreeConfig)
    config = changed("tree.depth=5", "tree.data.seed=2")
    assert parts.section(config, "tree") == TreeConfig(5, DataConfig(seed=2))
    with pytest.raises(ConfigError, match=r"^gan.em: expected one of r1, .*; did you mean 'ema'"):
        changed("gan.em=1")
    with pytest.raises(ConfigError, match=r"one of name, .*, gan, .*, tree, got 'trees'; did you"):
        changed("trees.depth=1")
    for name in ("data", "gan"):
        with pytest.raises(ConfigError, match=f"expected a name other than .*got '{name}'"):
            parts.register_section(name, TreeConfig)
    with pytest.raises(TypeError, match="section greedy: expected a default for depth, got none"):
        parts.register_section("greedy", Greedy)
    with pytest.raises(TypeError, match="section greedy: expected a dataclass, got 3"):
        parts.register_section("greedy", 3)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"gan": GanConfig(r1="much")}, "gan.r1: expected float, got 'much'"),
        ({"gan": {"r1": 1.0}}, "kinds.gan: expected GanConfig, got {'r1': 1.0}"),
        ({"gam": GanConfig()}, "kinds: expected one of gan, .*, got 'gam'; did you mean 'gan'"),
        (3, "kinds: expected Mapping"),
    ],
)
def test_sections_are_checked(kinds, message):
    with pytest.raises(ConfigError, match=message):
        check_types(Config(kinds=kinds))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("request.each=maybe", "request.each: expected true or false, got 'maybe'"),
        ("epochs=3", "epochs: expected one of name, seed, seeds, data"),
        (
            "train.epoch=3",
            r"expected one of epochs, batch_size.*got 'epoch'; did you mean 'epochs'",
        ),
        ("train.epochs=many", "train.epochs: expected float, got 'many'"),
        ("seed=1.5", "seed: expected int, got '1.5'"),
        ("request.classes=3.7", "request.classes: expected whole numbers such as 3,5 .* got '3.7'"),
        ("train=3", "train: expected a key below it, one of train.epochs"),
        ("seed.x=3", "expected a value here"),
        ("seed", "override: expected key=value, got 'seed'"),
        ("gan=3", "gan: expected a key below it, one of gan.r1, gan.r1_every"),
        ("gan.nonsense=1", "gan.nonsense: expected one of r1, r1_every, ema, .*, got 'nonsense'"),
        ("gan.r1=x", "gan.r1: expected float, got 'x'"),
        ("kinds=3", "kinds: expected one of name, seed, .*, gan, .*, got 'kinds'"),
        ("kinds.tree.depth=1", "kinds.tree.depth: expected one of name, .*, gan, .*, got 'tree'"),
        ("methods=", "methods: expected at least one, got none"),
    ],
)
def test_mistakes_are_explained(override, message):
    with pytest.raises(ConfigError, match=message):
        changed(override)


def test_the_librarys_own_configurations():
    assert set(list_configs()) >= {"digits", "mnist_neuron_path", "cifar10_neuron_path"}
    assert load_config(None) == load_config("digits") == Config()
    benches = {name for name in list_configs() if name.startswith("bench_")}
    for name in benches:
        assert load_bench(name).base.name == name
    for name in set(list_configs()) - benches:
        assert load_config(name).name == name
    with pytest.raises(ConfigError, match="got BenchConfig; it is one of jaxunlearn bench"):
        load_config("bench_digits")
    with pytest.raises(ConfigError, match="got Config; it is one of jaxunlearn run"):
        load_bench("digits")
    assert find_config("configs/digits.py").name == "digits.py"


def test_words_of_a_bench():
    bench = load_bench(
        "bench_digits", ["requests=class,random", "draws=3", "seeds=2", "methods=finetune,scrub"]
    )
    assert list(bench.requests) == ["class", "random"]
    assert (bench.draws, bench.base.seeds, bench.every) == (3, 2, False)
    assert dict(bench.base.methods) == {"finetune": {}, "scrub": {}}
    assert load_bench("bench_digits", ["methods.finetune.steps=4"]).every
    for words, message in (
        (["requests=clas"], "requests: expected some of class, several, .*, got 'clas'"),
        (["draw=3"], "draw: expected one of name, .*, got 'draw'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_bench("bench_digits", words)


def test_presets_are_read_by_name_or_path(tmp_path):
    assert isinstance(load_preset("digits"), dict)
    file = tmp_path / "mine.json"
    file.write_text('{"methods": {"finetune": {"options": {"class": {"steps": 3}}}}}')
    assert load_preset(str(file))["finetune"]["options"]["class"] == {"steps": 3}
    with pytest.raises(
        ConfigError, match=r"preset: expected a file or one of .*digits.*, got 'dig"
    ):
        load_preset("digit")
    file.write_text("[]")
    with pytest.raises(ConfigError, match=r"expected a file that bench --tune wrote, got .*mine"):
        load_preset(str(file))


def test_a_users_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxunlearn.config import Config\ndef get_config():\n    return Config(name='mine')\n"
    )
    assert load_config(str(file), ["retrained=1"]) == Config(name="mine", retrained=1)


def test_a_users_file_imports_what_stands_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "network_beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "later_beside.py").write_text("RETRAINED = 2\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "import network_beside\nfrom jaxunlearn.config import Config\n"
        "def get_config():\n    import later_beside\n"
        "    return Config(name=network_beside.NAME, retrained=later_beside.RETRAINED)\n"
    )
    assert load_config(str(file)) == Config(name="beside", retrained=2)
    before = list(sys.path)
    load_config("digits")
    assert sys.path == before, "the library's own files import nothing of their folder"


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1", r"expected a function get_config\(\)"), ("get_config = dict", "to return a Config")],
)
def test_a_file_of_another_kind(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(file))


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="got 'digit'; did you mean 'digits'"):
        load_config("digit")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=1e300", "train.epochs: expected at most 1,000,000, got 1e"),
        ("train.epochs=1e400", "train.epochs: expected a positive number, got inf"),
        ("train.epochs=-inf", "train.epochs: expected float, got '-inf'"),
        ("train.batch_size=3000000000", "train.batch_size: expected at most 1,000,000, got 3000"),
        ("train.momentum=-0.1", "train.momentum: expected a number from 0 to below 1, got -0.1"),
        ("train.momentum=1", "train.momentum: expected a number from 0 to below 1, got 1.0"),
        ("train.weight_decay=-1e-9", "train.weight_decay: expected a number >= 0, got -1e-09"),
        ("train.learning_rate=1e39", "train.learning_rate: expected a number of at most 3.4e"),
        (
            "gan.classifier_train.momentum=2",
            "gan.classifier_train.momentum: expected a number from 0",
        ),
        ("seed=4294967296", "seed: expected at most 4,294,967,295, got 4294967296"),
        ("request.seed=4294967296", "request.seed: expected at most 4,294,967,295"),
        ("data.seed=-1", "data.seed: expected a number >= 0, got -1"),
        ("seeds=" + "1" + "0" * 20, "seeds: expected at most 10,000, got 1000"),
        ("data.image_size=" + "1" + "0" * 20, "data.image_size: expected at most 8,192"),
        ("data.image_size=0", "data.image_size: expected at least 1, got 0"),
        ("methods.finetune.chunk=" + "9" * 12, "methods.finetune.chunk: expected a whole number"),
        ("model.options.x=1e39", "model.options.x: expected a number of at most 3.4e"),
        ("model.options.x={1: 2}", "model.options.x: expected names that are text, got 1"),
        ("model.options.x=1j", "model.options.x: expected numbers, texts, lists and mappings"),
        ("methods.finetune=3", "methods.finetune: expected options, such as methods.finetune.st"),
    ],
)
def test_values_are_bounded_by_what_can_be_meant(override, message):
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        check_types(changed(override))


@pytest.mark.parametrize(
    "value", ["[" * 3000 + "]" * 3000, "(" * 99, "{'a':" * 50 + "1" + "}" * 50, "-" * 9999 + "1"]
)
def test_deep_values_are_one_short_line(value):
    for key in ("model.options.x", "request.classes", "methods.finetune.steps", "train.epochs"):
        with pytest.raises(ConfigError, match=f"^{key}: expected") as error:
            check_types(changed(f"{key}={value}"))
        assert len(str(error.value)) < 300
    deep = ()
    for _ in range(5000):
        deep = (deep,)
    with pytest.raises(ConfigError, match="at most 20 levels of brackets"):
        check_types(Config(model=parts.ModelConfig(options={"features": deep})))
    with pytest.raises(ConfigError, match="a key of at most 200 characters"):
        changed("methods.x." + "a." * 3000 + "b=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Config(epochs=3)", r"mine.py:4: TypeError: .*'epochs'; it is a field of TrainConfig"),
        ("Config(oracles=3)", r"mine.py:4: TypeError: .*; it is now 'retrained'"),
        ("Config(train=TrainConfig(ema=1))", r"mine.py:4: .*; it is a field of GanConfig"),
        ("1 / 0", r"mine.py:4: ZeroDivisionError: division by zero"),
        ("{}['a']", r"mine.py:4: KeyError: 'a'"),
        ("get_config()", r"mine.py:4: RecursionError: "),
        ("exit(3)", r"mine.py:4: SystemExit: 3"),
        ("(", r"mine.py:4: SyntaxError: '\(' was never closed"),
        ("'two\\nlines'.nothing", r"mine.py:4: AttributeError: "),
        ("3", "expected get_config\\(\\) to return a Config, got int"),
    ],
)
def test_what_a_file_raises_is_one_line_with_its_number(tmp_path, text, message):
    file = tmp_path / "mine.py"
    head = "from jaxunlearn.config import Config, TrainConfig\n\ndef get_config():\n"
    file.write_text(f"{head}    return {text}\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_config(str(file))
    assert "\n" not in str(error.value)


def test_a_library_that_a_file_calls_is_not_blamed(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import json\njson.loads('[')\n")
    with pytest.raises(ConfigError, match=r"mine\.py:2: JSONDecodeError: Expecting value"):
        load_config(str(file))


@pytest.mark.parametrize("word", ["true", "False"])
def test_truths_among_options_are_no_texts(word):
    keys = ("model.options.remat", "methods.finetune.thing", "data.options.on")
    config = load_config("digits", [f"{key}={word}" for key in keys])
    found = (config.model.options["remat"], config.methods["finetune"]["thing"])
    assert {*found, config.data.options["on"]} == {word == "true"}
    assert load_config("digits", ["data.options.on=truest"]).data.options["on"] == "truest"
