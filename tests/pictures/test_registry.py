"""Every picture by one table: a row, a function that loads, a whole PNG or nothing."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import pictures
from jaxunlearn.core.errors import ConfigError, UserError
from jaxunlearn.core.registry import load
from tests.pictures.reading import greys, pixels, random


def dense(variables, x):
    return x @ variables["w"] @ variables["head"]


def dense_variables():
    keys = jax.random.split(jax.random.key(0))
    return {"w": jax.random.normal(keys[0], (3, 2)), "head": jax.random.normal(keys[1], (2, 2))}


LEAST = {
    "answer_losses": lambda: ({"original": {"forget": random(3)}},),
    "bench": lambda: (
        [
            {
                "name": "class",
                "floor": {"mean": 0.01, "interval": None},
                "rows": [
                    {
                        "label": "scrub",
                        "gap": {"mean": 0.02, "interval": 0.01},
                        "seconds": {"mean": 0.5, "interval": None},
                    }
                ],
            }
        ],
    ),
    "concepts": lambda: (["fur"], [1.0], [0.5]),
    "metric_study": lambda: (
        [{"metric": "depth", "faithfulness": 0.9, "relearning": 0.4, "rounding": None}],
    ),
    "confusions": lambda: ({"original": np.eye(2)},),
    "exposed": lambda: (greys(2), {"original": np.array([0.4, 0.9])}),
    "exposed_answers": lambda: ([[("Ada", 0.5), ("wrote", -0.2)]],),
    "exposed_images": lambda: (greys(2), {"original": np.array([0.4, 0.9])}),
    "heatmaps": lambda: (greys(1), random(1, 8, 8)),
    "maps": lambda: (greys(1), random(1, 1, 2, 2), ["fur"]),
    "patches": lambda: (greys(1), ["fur"], np.array([[0]]), np.array([[[1, 2]]]), 3),
    "path": lambda: (dense, dense_variables(), dense_variables(), jnp.ones((2, 3)), 1),
    "poison": lambda: (greys(1), greys(1), np.array([[[1, 2]]]), 3, [0], [1], greys(1)),
    "samples": lambda: ({"original": random(1, 2, 2, 1)},),
    "losses": lambda: ({"original": {"forget": random(3)}},),
    "scores": lambda: ({"original": {"forget": random(3)}},),
    "strips": lambda: ({"original": random(1, 2, 2, 2, 1)},),
    "words": lambda: ([[("Ada", 0.5), ("wrote", -0.2)]],),
}
"""The least that a picture takes, behind the path."""


def test_the_table_has_every_picture():
    assert set(LEAST) == set(pictures.PICTURES)


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("name", LEAST)
def test_a_picture_is_a_whole_file_or_the_users_error(tmp_path, name):
    draw, given = getattr(pictures, f"save_{name}"), LEAST[name]()
    file = tmp_path / "new" / "folder" / "picture.png"
    draw(file, *given)
    shown = pixels(file)
    assert len(np.unique(shown)) > 2
    # drawn again, the file is replaced; with a title, the page is higher
    file.write_bytes(b"another")
    draw(str(file), *given, title="$title")
    assert pixels(file).shape[0] > shown.shape[0]
    assert list(file.parent.iterdir()) == [file], "nothing half-written is left"
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="path: expected a file that can be written"):
        draw(tmp_path / "taken" / "picture.png", *given)


@pytest.mark.parametrize("name", LEAST)
def test_a_picture_is_documented(name):
    draw = load(pictures.PICTURES[name].target)
    assert draw is getattr(pictures, f"save_{name}")
    told = inspect.getdoc(draw)
    assert told.startswith("Draws ")
    listed = told[told.index("Args:") : told.index("Raises:")]
    for parameter in inspect.signature(draw).parameters:
        assert f"{parameter}: " in listed or f"{parameter}, " in listed, parameter
    for error in ("ValueError: ", "UserError: the file cannot be written", "Source: "):
        assert error in told
    assert pictures.PICTURES[name].summary
    assert f"save_{name}" in dir(pictures)


WAVES = """
from jaxunlearn.pictures import style

def save_waves(path, values):
    with style.page(path, 2.0, 1.0, "waves") as page:
        page.axes(0.2, 0.5, 1.6, 0.4).plot(values)
"""


@pytest.mark.usefixtures("coarse")
def test_another_picture_is_one_file_and_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.PICTURES, "_rows", dict(pictures.PICTURES._rows))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_waves.py").write_text(WAVES)
    row = pictures.Picture("their_waves:save_waves", "waves")
    pictures.PICTURES.register("waves", row)
    assert "their_waves" not in sys.modules, "not before it is drawn"
    pictures.save_waves(tmp_path / "waves.png", [0, 1, 0])
    assert pixels(tmp_path / "waves.png").shape == (40, 80, 3)
    with pytest.raises(ConfigError, match="pictures: expected a name not yet taken, got 'waves'"):
        pictures.PICTURES.register("waves", row)
    with pytest.raises(TypeError, match=r"pictures\.hills: expected Picture, got str"):
        pictures.PICTURES.register("hills", "their_waves:save_hills")


def test_a_picture_that_there_is_not():
    with pytest.raises(
        AttributeError, match=r"no attribute 'save_pth'; did you mean .*'save_path'"
    ):
        pictures.save_pth  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'path_'"):
        pictures.path_  # noqa: B018
    with pytest.raises(ImportError, match="save_pth"):
        from jaxunlearn.pictures import save_pth  # noqa: F401


def test_matplotlib_waits_until_something_is_drawn():
    code = (
        "import sys\n"
        "from jaxunlearn import pictures\n"
        "print('jax' in sys.modules)\n"
        "for name in pictures.PICTURES:\n"
        "    getattr(pictures, f'save_{name}')\n"
        "print('matplotlib' in sys.modules)"
    )
    here = {**os.environ, "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=here,
        cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    assert out.stdout.split() == ["False", "False"], out.stderr
