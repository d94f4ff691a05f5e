import pytest

from jaxunlearn.config import Config, Request
from jaxunlearn.config.overrides import apply_overrides, find_config, list_configs, load_config
from jaxunlearn.core.errors import ConfigError


def changed(*overrides):
    return apply_overrides(Config(), overrides)


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
    assert (
        config.methods["neuron_path"]["per_sample"] == Config().methods["neuron_path"]["per_sample"]
    )
    assert config.methods["retrain"] == {}


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
        ("request.classes=a", "request.classes: expected whole numbers such as 3,5, got 'a'"),
        ("train=3", "train: expected a key below it, one of train.epochs"),
        ("seed.x=3", "expected a value here"),
        ("seed", "override: expected key=value, got 'seed'"),
    ],
)
def test_mistakes_are_explained(override, message):
    with pytest.raises(ConfigError, match=message):
        changed(override)


def test_the_librarys_own_configurations():
    assert set(list_configs()) >= {"digits", "mnist_neuron_path", "cifar10_neuron_path"}
    assert load_config(None) == load_config("digits") == Config()
    for name in list_configs():
        assert load_config(name).name == name
    assert find_config("configs/digits.py").name == "digits.py"


def test_a_users_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxunlearn.config import Config\ndef get_config():\n    return Config(name='mine')\n"
    )
    assert load_config(str(file), ["oracles=1"]) == Config(name="mine", oracles=1)


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
