"""Kinds of models: one object each says all that a run must know of it.

Nothing outside this room and a kind's own asks what kind a model is. Another kind is one file
with a class derived from :class:`Kind`, and one row here, an entry point in the group
``jaxunlearn.kinds``, or a call of :func:`register_kind`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.config import Config, ModelConfig, TrainConfig, register_section
from jaxunlearn.core.errors import ConfigError, brief, did_you_mean
from jaxunlearn.core.registry import Registry, load
from jaxunlearn.core.types import Examples, Key, Sets, Unlearner, Variables
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.engine.sharding import Sharding
from jaxunlearn.gan import Guide
from jaxunlearn.methods import METHODS
from jaxunlearn.metrics import Evidence
from jaxunlearn.metrics.robustness import Attack

__all__ = [
    "KINDS",
    "Drawing",
    "Helper",
    "Judging",
    "Kind",
    "Row",
    "Supplied",
    "View",
    "kind_of",
    "load_sections",
    "register_kind",
]


class Helper(NamedTuple):
    """Model that is trained besides: it leads methods, or judges what others make.

    Attributes:
      model: its network.
      config, train: how it is built and trained, as recorded.
    """

    model: Any
    config: ModelConfig
    train: TrainConfig


class Drawing(NamedTuple):
    """Method of a run as its pictures see it.

    Attributes:
      name: of the method, as in ``METHODS``.
      options: its keyword arguments, where they are not the defaults.
      key: that it was run with.
      prepared: returns what it found before it was run, or ``None``.
    """

    name: str
    options: Mapping[str, Any]
    key: Key
    prepared: Callable[[], Any]


class View(NamedTuple):
    """Run of one request as its pictures see it.

    Attributes:
      title: of the run.
      model: the network.
      variables: by label: ``"original"``, the methods that did not fail, ``"retrained"``.
      sets: of the request.
      class_names: of the labels.
      methods: by label.
      observe: label -> evidence of that model.
      examples: values of each forget example, by label and metric: usual ones and those asked for.
    """

    title: str
    model: Any
    variables: Mapping[str, Variables]
    sets: Sets
    class_names: Sequence[str]
    methods: Mapping[str, Drawing]
    observe: Callable[[str], Any]
    examples: Mapping[str, Mapping[str, np.ndarray]] = {}


class Supplied(NamedTuple):
    """What a run of a kind finds there instead of making it.

    Attributes:
      start: whether training starts from given variables, not from drawn ones.
      original: whether the original is given.
      notes: sentences on what :meth:`Kind.outline` assumes.
    """

    start: bool = False
    original: bool = False
    notes: tuple[str, ...] = ()


class Judging(NamedTuple):
    """What judgement does with a model that may need more memory than the model itself.

    Attributes:
      programs: by name, a function of the variables, and shapes of its other arguments.
      methods: by name, a method that is run on the model, and the size of its batches.
      cache: shapes of what a program keeps between its steps.
    """

    programs: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    methods: Mapping[str, tuple[Unlearner, int]] = {}
    cache: Any = ()


class Kind:
    """Kind of models; the methods that raise are those that each kind has to define.

    Attributes:
      name: as in ``METHODS`` and ``NETWORKS``.
      summary: one line for ``jaxunlearn list``.
      section: the dataclass of the kind's own settings, a section of the configuration under
        the kind's name; ``None`` if it has none.
      evidence: what its metrics read.
      attacks: by name, what models may be put through before they are judged again.
      trains_methods: whether its methods use the optimizer of training where they were told none.
    """

    name = ""
    summary = ""
    section: type | None = None
    evidence: type[Evidence] = Evidence
    attacks: Mapping[str, Attack] = {}
    trains_methods = False

    def owns(self, model: Any) -> bool:
        """Tells whether a network is of this kind."""
        raise NotImplementedError

    def build(self, config: ModelConfig, x: Any, data: Dataset, settings: Any = None) -> Any:
        """Builds the network that a configuration names, and checks it.

        Args:
          x: shapes and dtypes of a batch of examples, as the network gets them.
          data: as :meth:`read` returned them: names of the classes, and ``facts`` such as the
            tokenizer, whose vocabulary the network has.
          settings: of the section.
        """
        raise NotImplementedError

    def recipe(
        self, model: Any, train: TrainConfig, examples: int, settings: Any
    ) -> tuple[Unlearner, int]:
        """Returns training as a method, and its steps; equal arguments give the same object.

        Args:
          examples: of an epoch.
          settings: of the section.
        """
        raise NotImplementedError

    def given(self, model: Any) -> Any:
        """Returns the network in the form that this kind works with."""
        return model

    def read(self, data: Dataset, settings: Any = None) -> Dataset:
        """Returns a data set as this kind needs it: images normalised, texts as tokens.

        The data are as their source gives them, on the host; the run puts what is returned on
        the device. What else is found out goes into ``facts``, and what models depend on besides
        into the ``fingerprint``.

        Args:
          settings: of the section.
        """
        return data

    def outline(self, data: Dataset, settings: Any = None) -> Dataset:
        """Returns what :meth:`read` does, or as large, where files of checkpoints are not there.

        An account of memory is made of it.
        """
        return self.read(data, settings)

    def supplied(self, settings: Any) -> Supplied:
        """Returns what is given to a run, told from its settings alone."""
        return Supplied()

    def judging(self, model: Any, settings: Any, x: Any) -> Judging:
        """Returns what an account of memory must know of judgement.

        Args:
          x: shapes and dtypes of one example, as the network gets it.
        """
        return Judging()

    def start(self, model: Any, settings: Any, sharding: Sharding | None = None) -> Variables:
        """Returns the variables that training starts from; ``None``: those that its key draws."""
        return None

    def original(self, model: Any, settings: Any, sharding: Sharding | None = None) -> Variables:
        """Returns the original where the user gave one; ``None``: it is trained."""
        return None

    def check_settings(self, settings: Any) -> None:
        """Checks the values of the section; :class:`ConfigError` names the key."""

    def check_attacks(self, asked: Sequence[Any], where: str = "attacks") -> None:
        """Checks names of attacks; :class:`ConfigError` says which there are."""
        for name in asked:
            if not self.attacks:
                raise ConfigError(f"{where}: expected none on a {self.name}, got {brief(name)}")
            if name not in self.attacks:
                raise ConfigError(
                    f"{where}: expected one of {', '.join(self.attacks)}, got {brief(name)}"
                    f"{did_you_mean(name, self.attacks)}"
                )

    def check_sets(self, sets: Sets) -> None:
        """Checks whether what is retained suffices; :class:`RequestError` says why not."""

    def check_examples(self, model: Any, examples: Examples) -> None:
        """Checks whether a network goes with examples, before it is trained."""

    def helpers(self, settings: Any, x: Any, data: Dataset) -> Mapping[str, Helper]:
        """Returns what must be trained besides, by name; see :meth:`build`."""
        return {}

    def facts(self, data: Dataset, helpers: Mapping[str, Guide]) -> Mapping[str, Any]:
        """Returns what methods may take of data and helpers; see ``methods.FACTS``."""
        return data.facts

    def observe(
        self, model: Any, variables: Variables, sets: Sets, key: Key, *, settings: Any = None
    ) -> Evidence:
        """Returns the evidence of one model.

        A kind takes by keyword what its :meth:`aids` are.
        """
        return self.evidence(model, variables, sets, key)

    def aids(
        self, config: Config, data: Dataset, helpers: Mapping[str, Guide]
    ) -> Mapping[str, Any]:
        """Returns what a run gives to :meth:`observe` by keyword: helpers, facts of the data."""
        return {**helpers, **data.facts}

    def notes(self, original: Evidence, settings: Any) -> list[str]:
        """Returns sentences on how far the metrics of a report can be trusted."""
        return []

    def limits(self, settings: Any) -> list[str]:
        """Returns sentences for an erasure record, in plain words, on what was not looked at."""
        return []

    def keep(self, folder: Path, model: Any, data: Dataset) -> None:
        """Writes into the folder of a run what its models need elsewhere: of texts a tokenizer."""

    def export(self, stage: Path, folder: Path) -> None:
        """Writes a model of a run as others read it.

        Args:
          stage: the model's checkpoint, somewhere below the folder that :meth:`keep` wrote to.
          folder: to be made.

        Raises:
          ConfigError: this kind has no such form.
        """
        raise ConfigError(f"export: expected a language model, got a {self.name}: {stage}")

    def default_methods(self, config: Config) -> Mapping[str, Mapping[str, Any]]:
        """Returns the methods, with options, of a run that was told none."""
        own = [name for name, row in METHODS.items() if row.kind == self.name]
        return {name: {} for name in own if not name.endswith("retrain")}


class Row(NamedTuple):
    """Row of the registry: the kind, or ``"module:object"``, and one line on it."""

    target: str | Kind
    summary: str

    @property
    def kind(self) -> Kind:
        """Returns the kind; imports it where it was named, and adds its section."""
        kind: Kind = load(self.target)
        if kind.section is not None:
            register_section(kind.name, kind.section)
        return kind


class _Kinds(Registry[Row]):
    """Registry that takes a kind for its row."""

    def register(self, name: str, row: Row | Kind, *, overwrite: bool = False) -> None:
        row = Row(row, row.summary) if isinstance(row, Kind) else row
        super().register(name, row, overwrite=overwrite)


KINDS = _Kinds(
    "kinds",
    Row,
    {
        "classifier": Row("jaxunlearn.kinds.classifier:CLASSIFIER", "one label for each example"),
        "gan": Row("jaxunlearn.kinds.gan:GAN", "a generator and a discriminator of images"),
        "language": Row("jaxunlearn.kinds.language:LANGUAGE", "a decoder that answers questions"),
    },
)


def register_kind(kind: Kind) -> None:
    """Adds a kind of models; runs, ``train`` and ``evaluate`` then know it.

    Raises:
      ConfigError: the name, or that of its section, is taken.
    """
    KINDS.register(kind.name, kind)
    if kind.section is not None:
        register_section(kind.name, kind.section)


def load_sections(names: Iterable[str]) -> None:
    """Imports the kinds of these names, as far as there are any: each adds its section."""
    for name in names:
        if name in KINDS:
            _ = KINDS[name].kind


def kind_of(model: Any) -> Kind:
    """Returns the kind that owns a network; of several the one that was registered last.

    Raises:
      TypeError: none does.
    """
    for row in reversed(list(KINDS.values())):
        if row.kind.owns(model):
            return row.kind
    raise TypeError(
        f"model: expected a network of one of the kinds {', '.join(KINDS)}, "
        f"got {type(model).__name__}"
    )
