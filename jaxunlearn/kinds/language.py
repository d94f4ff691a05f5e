"""Language models: decoders that answer questions, read as tokens of a prompt and its answer.

The tokenizer comes from a file, with the checkpoint that training starts from, or is trained on
the training texts; it is a fact of the data that methods and metrics are given.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxunlearn import checkpoint
from jaxunlearn.config import Config, LanguageConfig, ModelConfig, TrainConfig, section
from jaxunlearn.core.errors import ConfigError, DataError
from jaxunlearn.core.files import sha256, write_text
from jaxunlearn.core.types import Examples, Key, LanguageModel, Sets, Unlearner, Variables
from jaxunlearn.data.dataset import ARRAYS, Dataset, fingerprint
from jaxunlearn.data.texts import to_texts
from jaxunlearn.engine.sharding import Sharding
from jaxunlearn.gan import Guide
from jaxunlearn.kinds import Judging, Kind, Supplied
from jaxunlearn.language.decoder import build_decoder
from jaxunlearn.language.generation import generate
from jaxunlearn.language.huggingface import load_pretrained, save_pretrained
from jaxunlearn.language.huggingface_config import CONFIG, config_of, shape_of
from jaxunlearn.language.pairs import encode_examples, find_template
from jaxunlearn.language.tokenizer import Tokenizer, check_fits, load_tokenizer, train_tokenizer
from jaxunlearn.methods.language.finetune import lm_finetune, lm_retrain
from jaxunlearn.metrics.language_attacks import batch_of
from jaxunlearn.metrics.language_evidence import LanguageEvidence
from jaxunlearn.metrics.registry import Evidence
from jaxunlearn.models import NETWORKS, build_language
from jaxunlearn.training.optimizers import make_optimizer

KEPT = "language"
"""Folder of a run with the tokenizer and the shape of its models."""

_FILES = ("tokenizer.json", "tokenizer.model")
# of a network from a checkpoint, whose sizes stand in its files
_OWN_OPTIONS = ("context", "dtype", "remat")
# methods that nothing holds back
_UNBOUND = ("lm_gradient_ascent", "task_vector")
_WEIGHTS = ("float32", "bfloat16", "float16")


class LanguageKind(Kind):
    """Kind of the decoders of ``ju.language``."""

    name = "language"
    summary = "a decoder that answers questions"
    section = LanguageConfig
    evidence = LanguageEvidence

    def owns(self, model: Any) -> bool:
        return isinstance(model, LanguageModel)

    def check_settings(self, settings: LanguageConfig) -> None:
        """Checks template, folders, and whether there is something to adapt."""
        find_template(settings.template)
        if settings.weights not in _WEIGHTS:
            raise ConfigError(
                f"language.weights: expected one of {', '.join(_WEIGHTS)}, got {settings.weights!r}"
            )
        for name in ("base", "original"):
            folder = getattr(settings, name)
            if folder is not None and not _folder(folder).is_dir():
                raise ConfigError(
                    f"language.{name}: expected a folder with a checkpoint, got {folder!r}"
                )
        if settings.lora is not None and settings.base is None:
            raise ConfigError(
                "language.lora: expected None without language.base, since adapters leave random "
                f"weights as they are, got {settings.lora}"
            )

    def read(self, data: Dataset, settings: LanguageConfig | None = None) -> Dataset:
        """Returns the texts as tokens of prompts and answers; the facts hold the tokenizer."""
        own = settings or LanguageConfig()
        _expect_pairs(data)
        read = _in_tokens(data, own, _tokenizer(data, own))
        arrays = {name: getattr(read, name) for name in ARRAYS}
        models = [_digest(one) for one in (own.base, own.original) if one is not None]
        told = [data.fingerprint, fingerprint(arrays, data.class_names), *models]
        return read._replace(fingerprint=hashlib.sha256(json.dumps(told).encode()).hexdigest())

    def outline(self, data: Dataset, settings: LanguageConfig | None = None) -> Dataset:
        """Returns the texts as tokens; a checkpoint without a tokenizer gets one for the texts."""
        own = settings or LanguageConfig()
        _expect_pairs(data)
        lacking = _lacks_tokenizer(own)
        return _in_tokens(data, own, _trained(data, own) if lacking else _tokenizer(data, own))

    def supplied(self, settings: LanguageConfig | None) -> Supplied:
        own = settings or LanguageConfig()
        notes: tuple[str, ...] = ()
        if _lacks_tokenizer(own):
            notes = (
                f"no tokenizer lies there: texts are as long as one of {own.vocabulary:,} tokens, "
                "trained on them, makes them, unless language.length says so",
            )
        return Supplied(own.base is not None, own.original is not None, notes)

    def judging(self, model: LanguageModel, settings: LanguageConfig | None, x: Any) -> Judging:
        """Returns scores and answers of a batch, and learning again in full."""
        own = settings or LanguageConfig()
        like = jax.eval_shape(model.init, jax.random.key(0))
        length = x["tokens"].shape[-1]
        count = batch_of(model, like, length)
        most = max(1, min(own.answer_length, model.shape.context - length))

        def texts(length: int) -> dict[str, Any]:
            kinds = {"tokens": np.int32, "mask": np.bool_}
            return {k: jax.ShapeDtypeStruct((count, length), kind) for k, kind in kinds.items()}

        asked = length - most if length > most else length
        key = jax.eval_shape(lambda: jax.random.key(0))
        write = functools.partial(generate, model, most=most, stop_token=0)
        learner = lm_finetune(model, optimizer=optax.adam(1e-3))
        again = {"learning again": (learner, own.relearning_examples)}
        return Judging(
            {"scores": (model.apply, (texts(length),)), "answers": (write, (texts(asked), key))},
            again if own.relearning_steps else {},
            jax.eval_shape(lambda: model.empty_cache(count, asked - 1 + most))["blocks"],
        )

    def build(
        self, config: ModelConfig, x: Any, data: Dataset, settings: LanguageConfig | None = None
    ) -> LanguageModel:
        """Builds the decoder, of the sizes of the checkpoint where there is one."""
        own, tokenizer = settings or LanguageConfig(), data.facts["tokenizer"]
        folders = [one for one in (own.original, own.base) if one is not None]
        if folders:
            model = _like_checkpoint(config, folders, own.weights)
        else:
            model = build_language(config.name, tokenizer.size, config.options)
        check_fits(tokenizer, model.shape.vocabulary)
        length = x["tokens"].shape[-1]
        if length > model.shape.context:
            raise ConfigError(
                f"model.options.context: expected at least {length} tokens, those of the longest "
                f"prompt with its answer, got {model.shape.context}"
            )
        return model

    def start(
        self,
        model: LanguageModel,
        settings: LanguageConfig | None,
        sharding: Sharding | None = None,
    ) -> Variables:
        if settings is None or settings.base is None:
            return None
        return _load(settings.base, model, settings.weights, sharding)

    def original(
        self, model: LanguageModel, settings: LanguageConfig, sharding: Sharding | None = None
    ) -> Variables:
        if settings.original is None:
            return None
        return _load(settings.original, model, settings.weights, sharding)

    def recipe(
        self,
        model: LanguageModel,
        train: TrainConfig,
        examples: int,
        settings: LanguageConfig | None = None,
    ) -> tuple[Unlearner, int]:
        own = settings or LanguageConfig()
        return _recipe(model, train, examples, own.base is not None, own.lora)

    def check_examples(self, model: LanguageModel, examples: Examples) -> None:
        """Checks that examples are tokens of the model's vocabulary and fit into its context."""
        x = examples.x
        if not isinstance(x, Mapping) or not {"tokens", "mask", "answer"} <= set(x):
            raise ConfigError(
                "part: expected tokens, mask and answer, as ju.language.encode_pairs gives them, "
                f"got {sorted(x) if isinstance(x, Mapping) else type(x).__name__}"
            )
        most, length = int(np.max(np.asarray(x["tokens"]))), x["tokens"].shape[-1]
        if most >= model.shape.vocabulary:
            raise ConfigError(
                f"part: expected tokens below {model.shape.vocabulary}, the vocabulary of the "
                f"model, got {most}"
            )
        if length > model.shape.context:
            raise ConfigError(
                f"part: expected texts of at most {model.shape.context} tokens, the context of "
                f"the model, got {length}"
            )

    def observe(
        self, model: LanguageModel, variables: Variables, sets: Sets, key: Key, *,
        settings: LanguageConfig | None = None, tokenizer: Tokenizer | None = None,
        topics: Sequence[str] = (), words: Sequence[str] = (),
    ) -> LanguageEvidence:  # fmt: skip
        """Returns the evidence of one model.

        Args:
          tokenizer: of the texts; without it metrics of texts are left out.
          topics: names of the topics, by label.
          words: those that are to be forgotten.
        """
        return LanguageEvidence(
            model, variables, sets, key,
            tokenizer=tokenizer, settings=settings, topics=topics, words=words,
        )  # fmt: skip

    def aids(
        self, config: Config, data: Dataset, helpers: Mapping[str, Guide]
    ) -> Mapping[str, Any]:
        return {**data.facts, "topics": data.class_names, "words": config.request.words}

    def limits(self, settings: LanguageConfig) -> list[str]:
        """Says how many answers were written out, and what models knew before."""
        found = [
            f"Answers were written out for at most {settings.generated:,} questions of each set, "
            f"of at most {settings.answer_length:,} tokens (pieces of words) each, and always the "
            "likeliest word first. Other questions, other wordings, other languages, and answers "
            "drawn by chance were not tried.",
            f"To learn it anew, the models were shown {settings.relearning_examples:,} examples in "
            f"at most {settings.relearning_steps:,} steps. More would bring back more.",
        ]
        if settings.base is not None or settings.original is not None:
            found.append(
                "Training began with a model made elsewhere. What that model had read of the same "
                "matter before is not covered, and models retrained from it may know it as well."
            )
        if settings.tokenizer is None and settings.base is None and settings.original is None:
            found.append(
                "The list of words and pieces of words that the models read with was made from "
                "all training texts, the forgotten ones included: a rare name may stand in it."
            )
        return found

    def notes(self, original: Evidence, settings: LanguageConfig) -> list[str]:
        """Says what the tokenizer knows, and where models start from."""
        notes = []
        if settings.tokenizer is None and settings.base is None and settings.original is None:
            notes.append(
                "tokenizer: trained on all training texts, those to be forgotten included; "
                "retrained models share it, and know so much of them"
            )
        if settings.original is not None and settings.base is None:
            notes.append(
                "the original was given, and retrained models start from random weights: where "
                "the original did not, they differ in more than what is forgotten"
            )
        return notes

    def default_methods(self, config: Config) -> Mapping[str, Mapping[str, Any]]:
        """Returns all methods; of models from random weights at a third of their learning rate.

        Checkpoints are changed at the methods' own rate, that of the field.
        """
        own, settings = super().default_methods(config), section(config, self.name)
        if settings.base is not None or settings.original is not None:
            return own
        rate = config.train.learning_rate / 3
        usual = {"optimizer": "adam", "schedule": "cosine", "learning_rate": rate, "steps": 40}
        return {name: {**usual, "steps": 10} if name in _UNBOUND else usual for name in own}

    def keep(self, folder: Path, model: LanguageModel, data: Dataset) -> None:
        tokenizer: Tokenizer = data.facts["tokenizer"]
        tokenizer.save(folder / KEPT)
        told = {**config_of(model.shape, "float32"), **_special(tokenizer)}
        write_text(folder / KEPT / CONFIG, json.dumps(told, indent=2) + "\n")

    def export(self, stage: Path, folder: Path) -> None:
        """Writes weights, configuration and tokenizer as Hugging Face has them."""
        kept = [parent / KEPT for parent in stage.absolute().parents]
        kept = [place for place in kept if (place / CONFIG).is_file()]
        if not kept:
            raise ConfigError(f"export: expected a run's folder {KEPT} beside {stage}, got none")
        tokenizer, model = load_tokenizer(kept[0]), build_decoder(shape_of(kept[0]))
        variables, record = checkpoint.load(stage)
        own = record["config"]["kinds"].get(self.name, {})
        # what else lies beside the checkpoint that it came from, and how its tensors are called
        like = next((one for one in map(own.get, ("original", "base")) if one), None)
        like = like if like is not None and _folder(like).is_dir() else None
        save_pretrained(folder, model, variables, like=like, fields=_special(tokenizer))
        tokenizer.save(folder)


def _expect_pairs(data: Dataset) -> None:
    splits = (data.train_x, data.test_x)
    if not all(isinstance(x, Mapping) and {"question", "answer"} <= set(x) for x in splits):
        raise ConfigError(
            "data.name: expected questions and answers for a language model, such as authors "
            "or a path ending in .jsonl, got other data"
        )


def _in_tokens(data: Dataset, settings: LanguageConfig, tokenizer: Tokenizer) -> Dataset:
    splits = [data.train_x, data.test_x]
    train, test = encode_examples(tokenizer, splits, settings.template, settings.length)
    return data._replace(train_x=train, test_x=test, facts={"tokenizer": tokenizer})


def _folder(path: str) -> Path:
    return Path(os.path.expanduser(path))


def _tokenizer(data: Dataset, settings: LanguageConfig) -> Tokenizer:
    """Returns the tokenizer that settings name, that of a checkpoint, or one that is trained."""
    if settings.tokenizer is not None:
        return load_tokenizer(settings.tokenizer)
    if _lacks_tokenizer(settings):
        raise ConfigError(
            f"language.tokenizer: expected a path where the checkpoint comes without "
            f"{' or '.join(_FILES)}, got None"
        )
    found = [one for one in (settings.original, settings.base) if one and _has_tokenizer(one)]
    return load_tokenizer(found[0]) if found else _trained(data, settings)


def _has_tokenizer(folder: str) -> bool:
    return any((_folder(folder) / name).is_file() for name in _FILES)


def _lacks_tokenizer(settings: LanguageConfig) -> bool:
    """Tells whether there is a checkpoint, and neither a tokenizer beside it nor one named."""
    folders = [one for one in (settings.original, settings.base) if one is not None]
    return bool(folders) and settings.tokenizer is None and not any(map(_has_tokenizer, folders))


def _trained(data: Dataset, settings: LanguageConfig) -> Tokenizer:
    x = {name: to_texts(np.asarray(data.train_x[name])) for name in ("question", "answer")}
    return train_tokenizer([*x["question"], *x["answer"]], settings.vocabulary)


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the numbers of special tokens as a configuration of Hugging Face has them."""
    found = {"eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    return found if tokenizer.bos is None else {"bos_token_id": tokenizer.bos, **found}


def _digest(folder: str) -> str:
    """Computes what changes with any file of a checkpoint."""
    files = sorted(path for path in _folder(folder).iterdir() if path.is_file())
    sums = {path.name: sha256(path) for path in files}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _like_checkpoint(config: ModelConfig, folders: list[str], weights: str) -> LanguageModel:
    """Builds the decoder of checkpoints, which have to agree."""
    NETWORKS.find(config.name, "model.name")
    options = dict(config.options)
    unknown = sorted(set(options) - set(_OWN_OPTIONS))
    if unknown:
        raise ConfigError(
            f"model.options: expected some of {', '.join(_OWN_OPTIONS)} beside a checkpoint, "
            f"whose sizes are its own, got {unknown}"
        )
    context = options.pop("context", None)
    shapes = [shape_of(one, context=context) for one in folders]
    for folder, shape in zip(folders, shapes, strict=True):
        if shape.architecture != config.name:
            raise ConfigError(
                f"model.name: expected {shape.architecture}, as {folder} is, got {config.name!r}"
            )
        if shape != shapes[0]:
            raise ConfigError(
                f"language.base: expected a network like language.original, {shapes[0]}, "
                f"got {shape}"
            )
    return _with_weights(build_decoder(shapes[0], **options), weights)


@functools.lru_cache(maxsize=32)
def _with_weights(model: LanguageModel, dtype: str) -> LanguageModel:
    """Returns the network with parameters of a number type; one object for equal arguments."""
    if dtype == "float32":
        return model

    def init(key: Key) -> Variables:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), model.init(key))

    return model._replace(init=init)


def _load(folder: str, model: LanguageModel, weights: str, sharding: Sharding | None) -> Variables:
    context = None if model.shape.rope is None else model.shape.context
    found, variables = load_pretrained(folder, sharding=sharding, dtype=weights, context=context)
    if found.shape != model.shape:
        raise DataError(f"{folder}: expected a checkpoint of {model.shape}, got {found.shape}")
    return variables


@functools.lru_cache(maxsize=32)
def _recipe(
    model: LanguageModel, train: TrainConfig, examples: int, given: bool, lora: int | None
) -> tuple[Unlearner, int]:
    # one object for equal settings, so that a second call finds the compiled program
    if train.augment != "none":
        raise ConfigError(f"train.augment: expected 'none' for texts, got {train.augment!r}")
    steps = max(1, round(train.epochs * examples / train.batch_size))
    optimizer = make_optimizer(train, steps)
    if given:
        return lm_finetune(model, optimizer=optimizer, lora=lora), steps
    return lm_retrain(model, optimizer=optimizer), steps


LANGUAGE = LanguageKind()
