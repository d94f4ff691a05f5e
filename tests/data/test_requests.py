import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.config import Config, Request
from jaxunlearn.config.overrides import apply_overrides, load_config
from jaxunlearn.core.errors import RequestError, UserError
from jaxunlearn.data.requests import describe, forget_mask, resolve, same_kind_mask, separate
from jaxunlearn.data.texts import to_bytes
from jaxunlearn.experiment.plan import make_plan

LABELS = np.array([0, 1, 2, 1, 0, 2, 2])


def positions(request):
    return list(np.flatnonzero(forget_mask(request, LABELS, 3)))


def test_what_is_named_is_marked():
    assert positions(ju.forget_class(1)) == [1, 3]
    assert positions(ju.data.forget_classes([0, 2])) == [0, 2, 4, 5, 6]
    assert positions(ju.data.forget_indices([6, 0])) == [0, 6]


def test_a_random_share_follows_from_its_seed():
    first, again, other = (positions(ju.data.forget_random(0.5, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 4


def test_other_splits_know_classes_only():
    assert list(np.flatnonzero(same_kind_mask(ju.forget_class(2), LABELS))) == [2, 5, 6]
    assert not same_kind_mask(ju.data.forget_indices([1]), LABELS).any()


def test_descriptions():
    assert describe(ju.forget_class(3)) == "forget class 3"
    assert describe(Request(each=True)) == "forget each class by itself"
    assert describe(ju.data.forget_classes([1, 2])) == "forget classes 1, 2"
    assert describe(ju.data.forget_indices([1, 2])) == "forget 2 given examples"
    assert describe(ju.data.forget_indices(LABELS == 1)) == "forget 2 given examples"
    assert describe(ju.data.forget_classes(range(9))) == "forget classes 0, 1, 2 and 6 more"
    assert "0.25" in describe(ju.data.forget_random(0.25))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(), "exactly one of classes, indices, share, words"),
        (Request(classes=(1,), share=0.5), "exactly one of"),
        (ju.forget_class(3), r"request.classes: expected numbers from 0 to 2, got \[3\]"),
        (ju.forget_class(-1), r"from 0 to 2, got \[-1\]"),
        (ju.data.forget_classes([1, 1]), "each number once"),
        (ju.data.forget_indices([7]), r"request.indices: expected numbers from 0 to 6, got \[7\]"),
        (ju.data.forget_random(1.5), "between 0 and 1, got 1.5"),
        (ju.data.forget_random(0.01), "none of the 7"),
        (ju.data.forget_random(0.99), "all 7 examples"),
        (ju.data.forget_classes([0, 1, 2]), "all 7 examples"),
    ],
)
def test_what_cannot_be_met_is_refused(request_, message):
    with pytest.raises(RequestError, match=message):
        forget_mask(request_, LABELS, 3)


def test_a_class_without_training_examples_is_refused():
    with pytest.raises(RequestError, match="none of the 7"):
        forget_mask(ju.forget_class(3), LABELS, 4)


def test_each_class_is_a_request_of_its_own():
    assert separate(Request(each=True), 3) == [ju.forget_class(label) for label in range(3)]
    assert separate(Request(each=True, classes=(2, 0)), 3) == [
        ju.forget_class(0),
        ju.forget_class(2),
    ]
    assert separate(ju.data.forget_classes([0, 2]), 3) == [ju.data.forget_classes([0, 2])]
    with pytest.raises(RequestError, match="a single request here"):
        forget_mask(Request(each=True), LABELS, 3)


# What people hold, and what is no request: nothing is rounded, cut or repeated

NAMES = ("ape", "cat", "dog")
X = np.zeros((7, 2), np.float32)


def meant(request):
    """Positions that a request means, by the way of a user."""
    sets = ju.make_sets(X, LABELS, request, class_names=NAMES)
    return np.asarray(sets.forget.indices).tolist()


ONES = LABELS == 1
TAKEN = {
    "int8": lambda: ju.forget_class(np.int8(1)),
    "uint64": lambda: ju.forget_class(np.uint64(1)),
    "array []": lambda: ju.forget_class(np.array(1)),
    "jax": lambda: ju.forget_class(jnp.int32(1)),
    "name": lambda: ju.forget_class("cat"),
    "NumPy's string": lambda: ju.forget_class(np.array(["cat"])[0]),
    "names": lambda: ju.data.forget_classes(np.array(["cat"])),
    "generator": lambda: ju.data.forget_classes(k for k in (1,)),
    "set": lambda: ju.data.forget_classes({np.uint8(1)}),
    "where": lambda: ju.data.forget_indices(np.where(ONES)),
    "nonzero": lambda: ju.data.forget_indices(jnp.nonzero(jnp.asarray(ONES))),
    "flatnonzero": lambda: ju.data.forget_indices(np.flatnonzero(ONES)),
    "argwhere": lambda: ju.data.forget_indices(np.argwhere(ONES)),
    "mask": lambda: ju.data.forget_indices(ONES),
    "mask of jax": lambda: ju.data.forget_indices(jnp.asarray(ONES)),
    "mask as a list": lambda: ju.data.forget_indices(ONES.tolist()),
    "objects": lambda: ju.data.forget_indices(np.array([1, 3], object)),
    "by hand": lambda: Request(indices=np.where(ONES)[0]),
    "mask by hand": lambda: Request(indices=tuple(ONES)),
    "list by hand": lambda: Request(classes=[np.int64(1)]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_people_hold_is_taken(name):
    assert meant(TAKEN[name]()) == [1, 3]


REFUSED = {
    "a fraction": (lambda: ju.forget_class(3.7), "label: .* whole number .* got 3.7"),
    "a float": (lambda: ju.forget_class(np.float32(1)), "label: expected a whole number"),
    "true": (lambda: ju.forget_class(True), "got True"),
    "NumPy's true": (lambda: ju.data.forget_classes([np.True_, 2]), "got np.True_"),
    "none": (lambda: ju.forget_class(None), "got None"),
    "a mask of classes": (lambda: ju.forget_class(ONES), "got ndarray bool .7.; use forget_cl"),
    "masks of classes": (lambda: ju.data.forget_classes(ONES), "forget_indices takes a mask"),
    "one as several": (lambda: ju.data.forget_classes(1), "forget_class takes one"),
    "text as several": (lambda: ju.data.forget_classes("12"), "expected several classes, got '12'"),
    "bytes": (lambda: ju.data.forget_classes(b"\1\2"), "expected several classes"),
    "no classes": (lambda: ju.data.forget_classes([]), "got none"),
    "a number in text": (lambda: ju.forget_class("1"), r"such as \['ape', 'cat', 'dog'\], got '1'"),
    "a misspelt name": (lambda: ju.forget_class("cta"), "got 'cta'; did you mean 'cat'"),
    "mixed": (lambda: ju.data.forget_indices([True, 3]), "or booleans alone, got True"),
    "floats": (lambda: ju.data.forget_indices([1.0, 3.0]), "indices: .* whole numbers"),
    "of two axes": (lambda: ju.data.forget_indices(np.where(ONES[:, None])), "2 arrays, as np.w"),
    "pairs": (lambda: ju.data.forget_indices(np.zeros((3, 2), int)), r"got ndarray int64 \[3, 2\]"),
    "one position": (lambda: ju.data.forget_indices(3), "expected positions .* got 3"),
    "a short mask": (lambda: ju.data.forget_indices(ONES[:5]), "7 training .* got one of 5"),
    "an empty mask": (lambda: ju.data.forget_indices(ONES & False), "names none of the 7"),
    "a full mask": (lambda: ju.data.forget_indices(ONES | True), "names all 7 examples"),
    "a mask of integers": (lambda: ju.data.forget_indices(1 * ONES), "a mask is of booleans"),
    "negative": (lambda: ju.data.forget_indices([-1, 2]), r"from 0 to 6, got \[-1\]"),
    "huge": (lambda: ju.data.forget_indices([10**30]), "from 0 to 6, got"),
    "many": (lambda: ju.data.forget_indices(range(9, 99)), r"got \[9, 10, 11, \.\.\.\]"),
    "swapped": (lambda: ju.data.forget_random(0, 0.05), "between 0 and 1, got 0; .*share, seed"),
    "swapped, too": (lambda: ju.data.forget_random(1, 0.05), "seed: .* whole number, got 0.05"),
    "share in text": (lambda: ju.data.forget_random("0.5"), "share: expected a number"),
    "a true share": (lambda: ju.data.forget_random(True), "share: expected a number"),
    "nan": (lambda: ju.data.forget_random(np.nan), "between 0 and 1, got nan"),
    "a seed below 0": (lambda: ju.data.forget_random(0.5, -1), "from 0 to 4,294,967,295, got -1"),
    "fraction by hand": (lambda: Request(classes=(1.5,)), "request.classes: .* got 1.5"),
    "true by hand": (lambda: Request(classes=(True, 1)), "request.classes: .* got True"),
    "seed by hand": (lambda: Request(share=0.5, seed=1.5), "request.seed: .* got 1.5"),
    "each by hand": (lambda: Request(each="no"), "request.each: expected true or false"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused_in_one_short_line(name):
    make, message = REFUSED[name]
    with pytest.raises((TypeError, RequestError), match=message) as found:
        meant(make())
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 200


def test_a_name_needs_names_and_means_one_class():
    with pytest.raises(RequestError, match="no class names are known here"):
        ju.make_sets(X, LABELS, ju.forget_class("cat"))
    with pytest.raises(RequestError, match=r"expected the name of one class, got 'a', that of"):
        ju.make_sets(X, LABELS, ju.forget_class("a"), class_names=("a", "b", "a"))
    with pytest.raises(RequestError, match="names none of the 7"):
        ju.make_sets(X, LABELS, ju.forget_class("emu"), class_names=(*NAMES, "emu"))


@pytest.fixture(scope="module")
def named_data(tmp_path_factory):
    """A file of examples whose classes have names."""
    path, rng = tmp_path_factory.mktemp("data") / "pets.npz", np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 30)):
        arrays[f"{split}_x"] = rng.normal(size=(count, 4)).astype(np.float32)
        arrays[f"{split}_y"] = np.arange(count) % 3
    np.savez(path, **arrays, class_names=np.array(NAMES))
    return path


def planned(path, *words, config=None):
    words = [f"data.name={path}", "data.unseen=9", "methods=finetune", *words]
    given = load_config(None, words) if config is None else apply_overrides(config, words)
    return make_plan(given, path.parent)


def recorded(plan):
    return plan.config.request, sorted(np.asarray(plan.sets.forget.indices).tolist())


@pytest.mark.parametrize("text", ["cat", "1", "('cat',)", "'cat'", '("cat",)'])
def test_the_command_line_takes_names(named_data, text):
    request, found = recorded(planned(named_data, f"request.classes={text}"))
    assert request == ju.forget_class(1), "recorded in numbers"
    assert found == list(range(1, 60, 3))


def test_the_command_line_takes_several_names(named_data):
    for text in ("dog,cat", "2, cat", "('dog', 1)"):
        assert planned(named_data, f"request.classes={text}").config.request.classes == (2, 1)
    plan = planned(named_data, "request.classes=dog,ape", "request.each=true")
    assert plan.requests == (ju.forget_class(0), ju.forget_class(2))


@pytest.mark.parametrize("ending", ["npy", "txt", "csv", "mask.npy", "pairs.npy"])
def test_the_command_line_takes_files(named_data, ending):
    mask = np.arange(60) % 7 == 0
    file = named_data.parent / f"forget [1].{ending}"
    content = {"mask.npy": mask, "pairs.npy": np.argwhere(mask)}
    if ending.endswith("npy"):
        np.save(file, content.get(ending, np.flatnonzero(mask).astype(np.uint16)))
    else:
        file.write_text((", " if ending == "csv" else "\n").join(map(str, np.flatnonzero(mask))))
    request, found = recorded(planned(named_data, "request.classes=", f"request.indices=@{file}"))
    assert request.indices == tuple(np.flatnonzero(mask)), "recorded as positions"
    assert found == np.flatnonzero(mask).tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "none.npy",
            None,
            "expected a .npy, .txt or .csv file, got .*none.npy', which is not there",
        ),
        ("forget.json", "[1]", "expected a .npy, .txt or .csv file, got"),
        ("words.txt", "1 two 3.5 4 five six", r"whole numbers, got \['two', '3.5', 'five', "),
        ("empty.csv", "", "expected whole numbers, got none"),
        ("floats.npy", np.ones(3), r"whole numbers or booleans \[M\], got ndarray float64 \[3\]"),
        ("objects.npy", np.array([1, None]), "expected an array, got"),
        ("short.npy", np.ones(5, bool), "expected a mask of the 60 training examples, got one of"),
        ("far.txt", "1 60", r"expected numbers from 0 to 59, got \[60\]"),
    ],
)
def test_a_file_that_is_no_request_is_named(named_data, name, content, message):
    file = named_data.parent / name
    if isinstance(content, str):
        file.write_text(content)
    elif content is not None:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(UserError, match=message) as found:
        planned(named_data, "request.classes=", f"request.indices=@{file}")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["request.classes=1.5"], "request.classes: expected whole numbers such as 3,5 or class"),
        (["request.classes=cat,1.5"], "request.classes: expected whole numbers"),
        (["request.classes=True"], "request.classes: expected whole numbers"),
        (["request.classes=emu"], r"such as \['ape', 'cat', 'dog'\], got 'emu'"),
        (["request.classes=cat,1"], r"expected each number once, got \[1, 1\]"),
        (["request.classes=", "request.indices=True,False"], "request.indices: expected whole num"),
        (["request.classes=", "request.share=0.1", "request.seed=0.5"], "request.seed: expected"),
    ],
)
def test_the_command_line_refuses(named_data, words, message):
    with pytest.raises(UserError, match=message):
        planned(named_data, *words)


def test_a_configuration_file_takes_and_refuses_the_same(named_data):
    for classes in ((np.int64(1),), ["cat"], (jnp.uint8(1),)):
        config = Config(request=Request(classes=classes))
        assert planned(named_data, config=config).config.request == ju.forget_class(1)
    config = Config(request=ju.data.forget_indices(np.arange(60) < 3))
    assert planned(named_data, config=config).config.request.indices == (0, 1, 2)
    for wrong in ((1.5,), (True,), "cat", 1, ("emu",)):
        with pytest.raises(RequestError, match=r"request\.classes: expected"):
            planned(named_data, config=Config(request=Request(classes=wrong)))


QUESTIONS = ["Where was Basil born?", "Who wrote  Baku Nights?", "Basilisk?", "Where was Ana born?"]
ANSWERS = ["In Kuwait.", "basil's sister did.", "A beast.", "In Café Town."]
TEXTS = {"question": to_bytes(QUESTIONS), "answer": to_bytes(ANSWERS)}


def named(request):
    return resolve(request, (), 4, TEXTS).indices


def test_words_name_the_texts_in_which_they_stand(tmp_path):
    assert named(ju.data.forget_words(["Basil"])) == (0, 1), "in capitals or not, as whole words"
    assert named(ju.data.forget_words(["baku nights", "beast"])) == (1, 2)
    assert named(ju.data.forget_words(["Cafe\u0301"])) == (3,), "however letters are composed"
    file = tmp_path / "forget.jsonl"
    file.write_text(
        '{"question": "Who wrote Baku Nights?"}\n\n'
        '{"question": "Where was Ana born?", "answer": "In Café Town."}\n'
    )
    asked = ju.data.forget_pairs(file)
    assert named(asked) == (1, 3)
    sets = ju.make_sets(TEXTS, np.array([0, 0, 1, 1]), asked)
    assert list(np.asarray(sets.forget.indices)) == [1, 3]
    found = resolve(ju.data.forget_words(["Basil"]), (), 4, TEXTS)
    assert describe(found) == "forget 2 texts with Basil"
    assert resolve(found, (), 4, TEXTS) == resolve(found, (), 4, {"tokens": 0}) == found
    assert list(np.flatnonzero(forget_mask(found, LABELS[:4], None))) == [0, 1]
    words = ["request.classes=", "request.words=Basil, 1984,Baku Nights"]
    assert apply_overrides(Config(), words).request.words == ("Basil", "1984", "Baku Nights")
    words[1] = "request.words='Rome, Italy'"
    assert apply_overrides(Config(), words).request.words == ("Rome, Italy",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "Who?"}\n', "got 1 of 1 that are not there, the first in line 1: 'Who[?]'"),
        ('\n{"question": "Basilisk?", "answer": "A bird."}', "the first in line 2: 'Basilisk[?]'"),
        ('{"answer": "A beast."}', "line 1: expected an object with a question"),
        ("Basilisk?", "line 1: expected an object"),
        ("\n", "expected pairs, got none in"),
        (None, "request.pairs: expected JSON lines, got .*No such file"),
    ],
)
def test_pairs_that_are_not_there(text, message, tmp_path):
    file = tmp_path / "forget.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RequestError, match=message):
        named(Request(pairs=str(file)))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(words=("Zoe",)), "none of which stands in any of the 4"),
        (Request(words=("Basil", " ")), "request.words: expected words or phrases, got ' '"),
        (Request(words="Basil"), "request.words: expected several words"),
        (Request(words=("Basil",), indices=(3,)), "exactly one of .*indices=.*, words="),
        (Request(words=("Basil",), pairs="f"), "exactly one of"),
        (Request(words=("Basil",), classes=(1,)), "exactly one of .*; request.classes= clears"),
        (Request(pairs=3), "request.pairs: expected the path of a file, got 3"),
    ],
)
def test_words_that_name_nothing(request_, message):
    with pytest.raises(RequestError, match=message):
        forget_mask(resolve(request_, (), 4, TEXTS), LABELS[:4], 3)


def test_words_need_texts(tmp_path):
    with pytest.raises(RequestError, match=r"request.words: expected training examples that are"):
        make_plan(load_config(None, ["request.classes=", "request.words=Basil"]), tmp_path)


def test_of_other_splits_classes_that_are_gone_are_of_the_kind_forgotten():
    """However they were named."""
    y = np.array([0, 1, 1, 2])
    request = ju.data.forget_indices([0, 1])
    x = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    sets = ju.make_sets(x, y, request, test=(x, y), num_classes=4)
    assert list(np.asarray(sets.test_forget.indices)) == [0]
    assert list(np.asarray(sets.test_retain.indices)) == [1, 2, 3]
