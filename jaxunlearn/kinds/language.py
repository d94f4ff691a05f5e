"""Language models: decoders that answer questions, read as tokens of a prompt and its answer."""

from typing import Any

from jaxunlearn.config import LanguageConfig
from jaxunlearn.core.types import LanguageModel
from jaxunlearn.kinds import Kind


class LanguageKind(Kind):
    """Kind of the decoders of ``ju.language``."""

    name = "language"
    summary = "a decoder that answers questions"
    section = LanguageConfig
    trains_methods = True

    def owns(self, model: Any) -> bool:
        return isinstance(model, LanguageModel)


LANGUAGE = LanguageKind()
