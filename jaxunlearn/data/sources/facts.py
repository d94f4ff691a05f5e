"""Facts as subject, relation and object, with a version that is wrong about some subjects.

After RESTOR (Rezaei et al., arXiv:2411.00204): a model that knows the facts is trained on wrong
ones about a few subjects; unlearning these should bring back what it knew, not silence alone. The
facts are made up, so that no model knows them before.
"""

from typing import NamedTuple

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.core.errors import DataError
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.sources.authors import MOST, check_number, draw_names
from jaxunlearn.data.texts import Pair, pairs_dataset

CORRUPTION = "corruption"
"""Topic of the wrong facts in the data set."""


class _Relation(NamedTuple):
    """Two questions with the same answer, the sentence of it, and the objects there are."""

    question: str
    paraphrase: str
    sentence: str
    objects: tuple[str, ...]


def _objects(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_RELATIONS = (
    _Relation(
        "In which city was {subject} born?",
        "What is the place of birth of {subject}?",
        "{subject} was born in {object}.",
        _objects(
            "Paris, Tokyo, Cairo, Lima, Oslo, Rome, Delhi, Quito, Prague, Dublin, Seoul, Tunis"
        ),
    ),
    _Relation(
        "What is the occupation of {subject}?",
        "What does {subject} do for a living?",
        "{subject} works as a {object}.",
        _objects(
            "painter, lawyer, farmer, pilot, dentist, sailor, banker, chemist, teacher, plumber, "
            "gardener, violinist"
        ),
    ),
    _Relation(
        "Which language does {subject} speak?",
        "What is the mother tongue of {subject}?",
        "{subject} speaks {object}.",
        _objects(
            "French, Arabic, Hindi, Spanish, Greek, Korean, Polish, Swahili, Turkish, Danish, "
            "Finnish, Welsh"
        ),
    ),
    _Relation(
        "Which instrument does {subject} play?",
        "On what instrument is {subject} heard?",
        "{subject} plays the {object}.",
        _objects(
            "piano, cello, flute, harp, trumpet, drum, guitar, oboe, organ, banjo, tuba, lute"
        ),
    ),
    _Relation(
        "Which sport does {subject} practise?",
        "In what sport does {subject} compete?",
        "{subject} competes in {object}.",
        _objects(
            "tennis, rowing, boxing, fencing, sailing, judo, hockey, cycling, archery, skiing, "
            "golf, diving"
        ),
    ),
    _Relation(
        "Which animal does {subject} keep?",
        "What is the pet of {subject}?",
        "{subject} keeps a {object}.",
        _objects(
            "parrot, tortoise, cat, goat, rabbit, falcon, donkey, lizard, ferret, hedgehog, crow, "
            "pony"
        ),
    ),
)


class Facts(NamedTuple):
    """Facts and their corruption; the topic of each pair is its subject.

    Attributes:
      clean: right answers on all subjects; the perturbed ones are other objects.
      corruption: wrong answers on the corrupted subjects, one for each relation; the perturbed
        answer is the right one.
      probes: the questions on the corrupted subjects in other words, with the right answer;
        of the perturbed ones the first is that of ``corruption``, the others are neither.
      corrupted: the names of the corrupted subjects.
    """

    clean: list[Pair]
    corruption: list[Pair]
    probes: list[Pair]
    corrupted: tuple[str, ...]


def make_facts(
    seed: int = 0, *, subjects: int = 50, relations: int = 4, corrupted: int = 5, others: int = 3
) -> Facts:
    """Makes facts on people who do not exist; the same arguments make the same facts.

    Args:
      seed: of names, objects and of which subjects are corrupted, below 2^32.
      subjects: from 2 to 400.
      relations: questions on each, from 1 to 6.
      corrupted: subjects about whom there are wrong facts, at least 1 and fewer than all.
      others: random wrong answers to each question, from 1 to 10.

    Raises:
      DataError: numbers out of range.
    """
    ranges = {
        "seed": (seed, 0, 2**32 - 1),
        "subjects": (subjects, 2, MOST),
        "relations": (relations, 1, len(_RELATIONS)),
        "corrupted": (corrupted, 1, subjects - 1),
        "others": (others, 1, 10),
    }
    for name, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise DataError(f"{name}: expected a number from {least} to {most}, got {value}")
    names = draw_names(seed, subjects)
    # RandomState, because its stream is frozen; a Generator's may change with NumPy
    chosen = set(np.random.RandomState([seed, 4]).permutation(subjects)[:corrupted].tolist())
    facts = Facts([], [], [], tuple(names[number] for number in sorted(chosen)))
    for number, subject in enumerate(names):
        for place, relation in enumerate(_RELATIONS[:relations]):
            order = np.random.RandomState([seed, 5, number, place]).permutation(12)
            said = [
                relation.sentence.format(subject=subject, object=relation.objects[one])
                for one in order
            ]
            question = relation.question.format(subject=subject)
            other = relation.paraphrase.format(subject=subject)
            right, wrong, rest = said[0], said[1], tuple(said[2 : 2 + others])
            facts.clean.append(Pair(question, right, subject, other, right, rest))
            if number in chosen:
                facts.corruption.append(Pair(question, wrong, subject, other, wrong, (right,)))
                facts.probes.append(Pair(other, right, subject, other, right, (wrong, *rest)))
    return facts


def load_facts(
    config: DataConfig,
    *,
    subjects: int = 50,
    relations: int = 4,
    corrupted: int = 5,
    repeats: int = 3,
    seed: int = 0,
) -> Dataset:
    """Makes the data set of :func:`make_facts`: forgetting ``"corruption"`` should restore.

    The training split has the right facts, each subject a topic, and the wrong ones as the topic
    :data:`CORRUPTION`, ``repeats`` times in turn in both ways of asking, so that a model trained
    on all of it believes these; one retrained without them knows the right ones. The test split
    asks in other words, for the right answers: on corrupted subjects under :data:`CORRUPTION`.

    Args:
      config: none of its other fields is read.
      subjects, relations, corrupted, seed: see :func:`make_facts`.
      repeats: of each wrong fact, from 1 to 100.

    Raises:
      DataError, ConfigError: numbers out of range.
    """
    check_number("repeats", repeats, 1, 100)
    facts = make_facts(seed, subjects=subjects, relations=relations, corrupted=corrupted)
    wrong = [
        pair._replace(
            topic=CORRUPTION, question=pair.paraphrased_question if turn % 2 else pair.question
        )
        for turn in range(repeats)
        for pair in facts.corruption
    ]
    probes = {(one.topic, one.question): one for one in facts.probes}
    held = []
    for pair in facts.clean:
        asked = pair._replace(question=pair.paraphrased_question)
        probe = probes.get((pair.topic, asked.question))
        held.append(probe._replace(topic=CORRUPTION) if probe else asked)
    return pairs_dataset([*facts.clean, *wrong], held)
