"""Pictures of few dots, where no dot is measured."""

import pytest

from jaxunlearn.pictures import style


@pytest.fixture
def coarse(monkeypatch):
    """Dots of an inch."""
    monkeypatch.setattr(style, "INCH", 40)
    return 40
