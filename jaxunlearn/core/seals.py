"""Sealed files: JSON that holds the SHA-256 of itself, so that a change shows.

A seal guards against damage and hasty changes. Whoever may write the file can seal another one:
against that helps a copy of the seal that is kept elsewhere.
"""

import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core.errors import CheckpointError, sentence
from jaxunlearn.core.files import write_text

UNSEALED = "named"
"""An object below another whose ``named`` may be removed later: the seal leaves it out."""


def plain(value: Any) -> Any:
    """Returns a value as JSON gives it back; NaN and infinity, which JSON has not, as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest_of(value: Any) -> str:
    """Computes the SHA-256 of JSON: keys sorted, no spaces, NaN and infinity as null."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal_of(record: Mapping[str, Any]) -> str:
    """Computes the seal: :func:`digest_of` the record without ``seal`` and ``*.named``."""
    return digest_of(
        {
            name: {k: v for k, v in value.items() if k != UNSEALED}
            if isinstance(value, Mapping)
            else value
            for name, value in record.items()
            if name != "seal"
        }
    )


def write_sealed(file: Path, record: Mapping[str, Any]) -> str:
    """Seals a record and writes it as a whole file; returns the seal."""
    whole = plain(record)
    seal = seal_of(whole)
    text = json.dumps({**whole, "seal": seal}, indent=1, sort_keys=True, ensure_ascii=False)
    write_text(file, text + "\n")
    return seal


def read_sealed(file: Path) -> dict[str, Any]:
    """Reads a sealed file.

    Raises:
      CheckpointError: it is not there, damaged, or not as it was when it was sealed.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("seal"), str):
            raise ValueError("expected an object with a seal")
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: expected a sealed record, got nothing there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: expected a sealed record: {sentence(error)}") from error
    if record["seal"] != seal_of(record):
        raise CheckpointError(f"{file}: was altered: its contents do not agree with its seal")
    return record


def text_digest(text: str) -> str:
    """Computes the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def now() -> str:
    """Returns date and time, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
