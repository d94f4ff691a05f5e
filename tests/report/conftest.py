"""A run's folder for its page."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxunlearn.pictures.scores import describe_scores


@pytest.fixture
def folder(tmp_path):
    """A run's folder, as much of it as a page reads."""
    home = tmp_path / "run"
    (home / "pictures/neuron_path").mkdir(parents=True)
    Image.effect_noise((700, 300), 80).save(home / "pictures/neuron_path/path.png")
    Image.effect_noise((40, 40), 80).save(home / "pictures/confusions.png")
    rng = np.random.default_rng(0)
    scores = {m: {"forget": rng.random(30), "test": rng.random(20)} for m in ("original", "scrub")}
    (home / "pictures/losses.json").write_text(
        json.dumps(describe_scores(scores, "loss", "forget", "test", small=True))
    )
    matrix = {"names": ["cat", "<dog>"], "forgotten": [1], "models": {"original": [[3, 1], [0, 4]]}}
    (home / "pictures/confusions.json").write_text(json.dumps(matrix))
    values = {f"unlearned/{name}/js_to_retrained": rng.random(30) for name in ("scrub", "tuning")}
    np.savez(home / "examples.npz", **values)
    np.savez(home / "sets.npz", forget=np.arange(100, 130))
    (home / "config.json").write_text(json.dumps({"name": "run", "request": {"indices": [7] * 50}}))
    return home
