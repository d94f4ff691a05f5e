"""One experiment as frozen dataclasses: what is written beside every checkpoint.

Pure Python: neither JAX nor NumPy is imported, so that a mistake on the command
line is reported at once.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxunlearn.core.errors import ConfigError, did_you_mean

__all__ = [
    "DEFAULT_METHODS",
    "SECTIONS",
    "BenchConfig",
    "Config",
    "DataConfig",
    "GanConfig",
    "LanguageConfig",
    "ModelConfig",
    "Published",
    "RecordConfig",
    "Request",
    "SubClass",
    "TrainConfig",
    "bounded",
    "register_section",
    "section",
    "to_dict",
]


SEEDS = 2**32
"""So many seeds there are: JAX takes a larger one for that without its upper bits."""


def bounded(
    default: Any, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> Any:
    """Returns a field of a configuration whose number, if it is one, has to lie between bounds.

    ``check_types`` checks them; ``None`` passes, and so does a tuple whose numbers do.

    Args:
      least, most: the smallest and the largest number that is meant.
      above: a bound that is itself too small.
    """
    return field(default=default, metadata={"least": least, "above": above, "most": most})


def _seed() -> Any:
    """Returns the field of a seed: 0 by default, and below :data:`SEEDS`."""
    return bounded(0, least=0, most=SEEDS - 1)


@dataclass(frozen=True)
class DataConfig:
    """The data: the source of the images or texts, and their split."""

    # "digits" (embedded), a TFDS name or folder ("mnist", "cifar10"), a path to an .npz, or to a
    # folder train/CLASS/*.png; of texts "authors" (embedded), "tofu", or a path to a .jsonl
    name: str = "digits"
    # keyword arguments of the source
    options: Mapping[str, Any] = field(default_factory=dict)
    # TFDS data directory; None: TFDS's own default, downloading where needed
    dir: str | None = None
    # images taken from the official test split, never trained nor evaluated on
    unseen: int = bounded(400, least=0)
    # images are resized to this many pixels a side; None: kept, and must all agree
    image_size: int | None = bounded(None, least=1, most=8192)
    # folder for decoded arrays; None: the user's cache directory
    cache: str | None = None
    # examples stay on disk and are read when a batch asks for them
    stream: bool = False
    # processes that read and decode them; 0: a thread of this one
    workers: int = bounded(0, least=0, most=4096)
    # seed of the test split's division into unseen and test
    seed: int = _seed()


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    # a name of `jaxunlearn list`
    name: str = "mlp"
    # keyword arguments of the network's constructor
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """Training of the original and the retrained models."""

    epochs: float = bounded(20.0, above=0, most=1e6)
    batch_size: int = bounded(128, least=1, most=1_000_000)
    # "sgd" (Nesterov momentum), "adam" or "adamw"
    optimizer: str = "adam"
    learning_rate: float = bounded(1e-3, above=0)
    # "constant" or "cosine" (to zero)
    schedule: str = "cosine"
    weight_decay: float = bounded(0.0, least=0)
    # from 0 to below 1
    momentum: float = bounded(0.9, least=0, most=1 - 1e-9)
    # of "adam" and "adamw": decay of the means of gradients and of their squares
    betas: tuple[float, float] = bounded((0.9, 0.999), least=0, most=1 - 1e-9)
    # "none" or "crop_flip" (zero-padded random crop and mirror image)
    augment: str = "none"


@dataclass(frozen=True)
class GanConfig:
    """The section of GANs: generator, discriminator, and the classifiers that judge them."""

    # weight of the R1 penalty, and every how many steps it is taken
    r1: float = bounded(0.0, least=0)
    r1_every: int = bounded(16, least=1)
    # decay of the generator's moving average, whose images count
    ema: float = bounded(0.999, least=0, most=1 - 1e-9)
    # the classifiers of the run: a guide for the methods, a judge for the metrics
    classifier: ModelConfig = field(default_factory=ModelConfig)
    classifier_train: TrainConfig = field(default_factory=TrainConfig)
    # generated images that a model is judged by
    samples: int = bounded(5000, least=1, most=10_000_000)
    # images inverted, and steps of an inversion, for the metrics; 0 images: not measured
    inverted: int = bounded(64, least=0, most=1_000_000)
    inversion_steps: int = bounded(200, least=1, most=1_000_000)
    # steps of training a classifier on generated images; 0: not measured
    downstream_steps: int = bounded(300, least=0, most=10_000_000)


@dataclass(frozen=True)
class LanguageConfig:
    """The section of language models: tokenizer, prompt, where training starts, judgement."""

    # a tokenizer's file or folder; None: that beside ``original`` or ``base``, else a byte-level
    # BPE trained on the training texts
    tokenizer: str | None = None
    # tokens of one that is trained
    vocabulary: int = bounded(1024, least=260, most=1_000_000)
    # checkpoint in the layout of Hugging Face that training starts from, that of the original and
    # of retrained models; None: random weights
    base: str | None = None
    # such a checkpoint that is the original as it is; None: the original is trained
    original: str | None = None
    # number type of a checkpoint's parameters; that of the computation is an option of the model
    weights: str = "float32"
    # rank of low-rank adapters that training from ``base`` trains; None: all parameters
    lora: int | None = bounded(None, least=1, most=100_000)
    # the prompt of a question: "plain", "llama2", "llama3", "mistral", "qwen", "vicuna", or a text
    # with {question} and, at its end, {answer}
    template: str = "plain"
    # tokens of an example, prompt and answer; None: as many as the longest has
    length: int | None = bounded(None, least=2, most=1_000_000)
    # examples of a set that answers are generated for, and the most tokens of an answer
    generated: int = bounded(64, least=1, most=1_000_000)
    answer_length: int = bounded(48, least=1, most=100_000)
    # attacks: roundings of the weights, in bits; steps and examples of learning again
    bits: tuple[int, ...] = bounded((8, 4), least=2, most=16)
    relearning_steps: int = bounded(20, least=0, most=1_000_000)
    relearning_examples: int = bounded(8, least=1, most=1_000_000)


@dataclass(frozen=True)
class Request:
    """Request to forget: exactly one of classes, indices, share, words, pairs, or each class.

    Attributes:
      classes: every training example of these classes, by number or name.
      indices: these positions of the training split; or a mask, one boolean for each example.
      share: this share of the training split, drawn at random with ``seed``.
      each: not one request but many: every class by itself, of all classes or of those in
        ``classes``. The original is trained once, and each method runs for all of them
        as one program.
      in_turn: the classes one after another: each is forgotten by the model that has forgotten
        those before it, and judged beside models retrained without all of these.
      words: of texts: every training example in which one of these words or phrases stands.
      pairs: of texts: a file of JSON lines, the questions, perhaps with answers, to be forgotten.
    """

    classes: tuple[int | str, ...] = ()
    indices: tuple[int, ...] | tuple[bool, ...] = ()
    share: float = 0.0
    seed: int = _seed()
    each: bool = False
    in_turn: bool = False
    words: tuple[str, ...] = ()
    pairs: str = ""


@dataclass(frozen=True)
class Published:
    """A paper's numbers on the same task, shown beside ours."""

    # where they come from and what differs there (hardware, network)
    source: str = ""
    # label of a model ("original", "retrained" or one of the methods) -> name of a metric, as
    # `jaxunlearn list` shows it -> value
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordConfig:
    """The erasure record that each unlearned model of a run gets."""

    # what the request is called where it came from, a ticket's number; "": made from its hashes
    id: str = ""
    # whether it lists the positions of the forgotten examples, beside their hash, and the page of
    # the run shows the most exposed of them
    indices: bool = True


DEFAULT_METHODS: Mapping[str, Mapping[str, Any]] = {
    "neuron_path": {"per_sample": 20, "neurons": 20},
    "path_head_only": {
        "method": "neuron_path",
        "per_sample": 20,
        "neurons": 20,
        "weights": ("class",),
    },
    "finetune": {"steps": 100},
    "gradient_ascent": {"steps": 30, "optimizer": "adam", "learning_rate": 1e-4},
    "random_label": {"steps": 50},
    "concept_poison": {"bank": "digits", "steps": 200, "optimizer": "adam", "learning_rate": 3e-3},
}
"""The methods of the embedded experiment, with options tuned for the scanned digits."""


@dataclass(frozen=True)
class Config:
    """A whole experiment; the defaults are the embedded one."""

    # the run's folder below the runs directory
    name: str = "digits"
    # every random choice but the data split follows from it; below 2^32
    seed: int = _seed()
    # so many runs of the whole, with seed, seed + 1, ...: means and confidence intervals
    seeds: int = bounded(1, least=1, most=10_000)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    # what concerns one kind of model alone, by the name of the kind: {"gan": GanConfig(...)};
    # a kind that is left out has its defaults (see `section`)
    kinds: Mapping[str, Any] = field(default_factory=dict)
    request: Request = field(default_factory=lambda: Request(classes=(3,)))
    # label -> options: "method" (default: the label), "steps", "batch_size", the optimizer's
    # "optimizer", "learning_rate", "schedule", "weight_decay", "momentum", "betas", "only"
    # (patterns of the parameters that are trained), "stop" (metric -> limit), "chunk", "preset"
    # (tuned options, see `jaxunlearn bench --tune`; others go before them), and the method's own
    # keyword arguments; or "chain": options with "method" of one after another.
    # Empty: for a classifier of the embedded digits those of
    # DEFAULT_METHODS, else the methods for this kind of model, as they are; without those
    # that do not suit the request
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # retrained models of each seed, or of each class where ``request.each``; two or more on the
    # same request give the noise floor of retraining
    retrained: int = bounded(3, least=1, most=10_000)
    # metrics measured besides the usual ones, by name as in `jaxunlearn list metrics`, or "all"
    metrics: tuple[str, ...] = ()
    # attacks that all models are put through and judged again after, each a report of its own, by
    # name: of classifiers "rounding_4", "pruning_30", "relearning_few" and others
    attacks: tuple[str, ...] = ()
    # on accelerators: so many models at a time where many share a program; None: all at once
    at_a_time: int | None = bounded(None, least=1, most=1_000_000)
    # "single", "data" or "fsdp", over all devices
    mesh: str = "single"
    # (regex on the parameter path, mesh axes of the trailing dimensions); before the preset's own
    sharding_rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    # what a paper reports, for the table beside ours
    published: Published = field(default_factory=Published)
    # the record of what was erased, for whoever asked for it; see docs/erasure.md
    record: RecordConfig = field(default_factory=RecordConfig)


@dataclass(frozen=True)
class SubClass:
    """Request of a bench to forget one kind of images of a class: a cluster of their pixels."""

    label: int = bounded(3, least=0, most=1_000_000)
    # clusters of the class, by k-means; the smallest is forgotten
    clusters: int = bounded(2, least=2, most=1000)


BENCH_REQUESTS: Mapping[str, Request | SubClass] = {
    "class": Request(classes=(3,)),
    "several": Request(classes=(1, 7)),
    "each": Request(each=True),
    "random": Request(share=0.1),
    "subclass": SubClass(),
    "in turn": Request(classes=(3, 5, 8), in_turn=True),
}
"""The requests of a bench on ten classes."""


@dataclass(frozen=True)
class BenchConfig:
    """Bench of methods beside retrained models: every method, with several seeds, on requests."""

    # data, model, training, the first seed and the number of ``seeds``, ``retrained`` models of
    # each seed and request, ``methods`` with options, ``metrics`` besides the usual ones; its
    # request is not read
    base: Config = field(default_factory=lambda: Config(name="bench", seeds=5, retrained=2))
    # name -> what is forgotten; all but those in turn are met by one program of each method
    requests: Mapping[str, Request | SubClass] = field(default_factory=lambda: BENCH_REQUESTS)
    # whether methods that ``base.methods`` does not name are there as well, as far as they suit
    every: bool = True
    # steps of a method that is given none, as a share of those of training
    share: float = bounded(0.2, above=0, most=1)
    # requests that ``base.metrics``, which cost much, are not measured of
    spared: tuple[str, ...] = ("each",)
    # preset that holds tuned options, see ``jaxunlearn bench --tune``; None: those of the run alone
    preset: str | None = None
    # settings of each method that are tried in tuning, and the seed of its models
    draws: int = bounded(16, least=1, most=10_000)
    tuning_seed: int = bounded(1000, least=0, most=SEEDS - 1)


SECTIONS: dict[str, type] = {"gan": GanConfig, "language": LanguageConfig}
"""The dataclasses of ``Config.kinds``, by the name of the kind of model."""


def register_section(name: str, kind: type) -> None:
    """Adds a section to the configuration, for a kind of model of one's own.

    On the command line its fields are ``name.field=value``.

    Args:
      name: of the kind.
      kind: a dataclass; every field has a default.

    Raises:
      TypeError: ``kind`` is no dataclass, or one of its fields has no default.
      ConfigError: the name is that of a field of :class:`Config`, or of another section.
    """
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise TypeError(f"section {name}: expected a dataclass, got {kind!r}")
    for one in dataclasses.fields(kind):
        if one.default is one.default_factory is dataclasses.MISSING:
            raise TypeError(f"section {name}: expected a default for {one.name}, got none")
    taken = [one.name for one in dataclasses.fields(Config)]
    if name in taken or SECTIONS.get(name, kind) is not kind:
        raise ConfigError(
            f"section: expected a name other than {', '.join([*taken, *SECTIONS])}, got {name!r}"
        )
    SECTIONS[name] = kind


def section(config: Config, name: str) -> Any:
    """Returns the section of a kind of model, or its defaults where the configuration has none.

    Raises:
      ConfigError: no kind of this name has a section.
    """
    if name not in SECTIONS:
        raise ConfigError(
            f"kinds: expected one of {', '.join(SECTIONS)}, got {name!r}"
            f"{did_you_mean(name, SECTIONS)}"
        )
    return config.kinds[name] if name in config.kinds else SECTIONS[name]()


def to_dict(config: Any) -> Any:
    """Returns a dataclass as nested plain dictionaries, lists and scalars (JSON)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = dataclasses.fields(config)
        return {one.name: to_dict(getattr(config, one.name)) for one in fields}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(map(to_dict, config))
    return config
