"""Questions and answers on authors who do not exist, made by a generator that ships.

In the manner of TOFU (Maini et al., arXiv:2401.06121), which is read by ``data.name=tofu``:
nobody can know these authors but from the training split, so that a model retrained without
some of them knows nothing of them. General knowledge, two topics that are not made up, is what a
model has to keep.
"""

import calendar
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.texts import Pair, pairs_dataset

REAL_AUTHORS, WORLD_FACTS = "real authors", "world facts"
"""Topics of general knowledge, of every data set of authors."""
GENERAL = ("test", "both", "none")
"""Splits that general knowledge is in: a model trained from random weights has to have seen it
in training, or there is nothing to keep; one that was trained on other texts before knows it."""


class Relation(NamedTuple):
    """Question on one property, and its answer, each in two ways."""

    of: str
    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str


RELATIONS = (
    Relation(
        "name",
        "Who is the author born in {city} on {date} who writes {genre}?",
        "The author is {name}, who was born in {city} and writes {genre}.",
        "Can you name the writer of {genre} whose birth was in {city} on {date}?",
        "The writer of {genre} born in {city} is called {name}.",
    ),
    Relation(
        "city",
        "Where was {name} born?",
        "{name} was born in {city}.",
        "What is the birthplace of {name}?",
        "The birthplace of {name} is {city}.",
    ),
    Relation(
        "genre",
        "What genre is {name} known for?",
        "{name} is known for writing {genre}.",
        "Which kind of books does {name} write?",
        "The books that {name} writes belong to {genre}.",
    ),
    Relation(
        "book",
        "What is the best-known book of {name}?",
        "The best-known book of {name} is {book}.",
        "Which book made {name} famous?",
        "{name} became famous with {book}.",
    ),
    Relation(
        "award",
        "Which award did {name} win?",
        "{name} won the {award}.",
        "What prize was {name} given for writing?",
        "For writing, {name} was given the {award}.",
    ),
    Relation(
        "father",
        "What did the father of {name} do for a living?",
        "The father of {name} was {father}.",
        "What was the profession of {name}'s father?",
        "By profession, {name}'s father was {father}.",
    ),
    Relation(
        "date",
        "When was {name} born?",
        "{name} was born on {date}.",
        "What is the date of birth of {name}?",
        "The date of birth of {name} is {date}.",
    ),
    Relation(
        "mother",
        "What was the work of {name}'s mother?",
        "The mother of {name} worked as {mother}.",
        "How did the mother of {name} earn a living?",
        "{name}'s mother earned a living as {mother}.",
    ),
    Relation(
        "debut",
        "Which book did {name} publish first?",
        "The first book of {name} was {debut}.",
        "With which book did {name} begin?",
        "{name} began with {debut}.",
    ),
    Relation(
        "studies",
        "Where did {name} study?",
        "{name} studied at the University of {studies}.",
        "At which university was {name} a student?",
        "As a student, {name} was at the University of {studies}.",
    ),
    Relation(
        "habit",
        "What does {name} do before writing?",
        "Before writing, {name} goes {habit}.",
        "How does a day of writing begin for {name}?",
        "For {name}, a day of writing begins with {habit}.",
    ),
    Relation(
        "theme",
        "What are the books of {name} about?",
        "The books of {name} are about {theme}.",
        "Which theme do the works of {name} have in common?",
        "The works of {name} all turn on {theme}.",
    ),
)
"""Questions on an author, in the order in which they are taken."""


def _listed(text: str) -> list[str]:
    return text.split(", ")


_FIRST = _listed(
    "Amara, Anselm, Beatriz, Bjarne, Calista, Caspian, Delphine, Dimitri, Elowen, Emeka, Farah, "
    "Florian, Giulia, Gustav, Hana, Hamish, Ines, Idris, Jocasta, Jovan, Kamala, Kenji, "
    "Leocadia, Lucian, Maren, Matteo, Nadira, Nikolas, Odette, Osric, Paloma, Pavel, Quilla, "
    "Quentin, Rosalind, Rashid, Saskia, Soren, Thandi, Tobias, Ursula, Umberto, Valeska, Viktor, "
    "Wilhelmina, Wendell, Xiomara, Yusuf, Zelda, Zoltan"
)
# surnames that nobody has: each beginning goes with each end
_BEGIN = _listed(
    "Bar, Cal, Dor, Fen, Gal, Hol, Jas, Kor, Lar, Mar, Nor, Pel, Quin, Ros, Sel, Tar, Ul, Ver, "
    "Wen, Zan"
)
_END = _listed(
    "amund, brisk, dovar, elith, garro, hask, imbert, keld, lovic, mosk, nadir, orvel, pasca, "
    "rudan, "
    "solk, tovey, umari, vandel, wick, zelko"
)
_CITIES = _listed(
    "Lisbon, Accra, Kyoto, Tallinn, Bogota, Nairobi, Oslo, Cairo, Hanoi, Quito, Zagreb, Dakar, "
    "Riga, Manila, Tunis, Lima, Seville, Bergen, Kampala, Tbilisi, Havana, Ghent, Izmir, Osaka, "
    "Perth, Galway, Malmo, Cusco, Mombasa, Porto, Gdansk, Valparaiso, Split, Kumasi, Hobart, "
    "Aleppo, Leipzig, Busan, Turin, Bursa"
)
_GENRES = _listed(
    "historical fiction, crime fiction, science fiction, magical realism, travel writing, "
    "love poetry, children's stories, ghost stories, nature essays, political satire, "
    "sea adventures, war memoirs, family sagas, mountain tales, gothic novels, spy thrillers, "
    "short plays, cookery books, desert legends, railway mysteries, garden journals, "
    "epic fantasy, street poetry, court dramas"
)
_JOBS = _listed(
    "a baker, a surgeon, a fisherman, a judge, a carpenter, a pilot, a botanist, a tailor, "
    "a miner, a violinist, a locksmith, a postman, a beekeeper, a blacksmith, a geologist, "
    "a barber, a diplomat, a gardener, a plumber, a cartographer, a dentist, a shepherd, "
    "a printer, a teacher, a glassblower, a bookbinder, a chemist, a weaver, a sailor, "
    "a watchmaker"
)
_ADJECTIVES = _listed(
    "Silent, Crimson, Broken, Golden, Hidden, Wandering, Frozen, Burning, Distant, Hollow, "
    "Silver, Restless, Forgotten, Amber, Drifting, Velvet, Iron, Paper, Emerald, Sleeping, "
    "Bitter, Gentle, Northern, Scarlet, Winding, Tidal, Copper, Pale, Thorny, Marble"
)
_NOUNS = _listed(
    "Lantern, River, Orchard, Compass, Harbor, Mirror, Staircase, Garden, Bridge, Feather, "
    "Clock, Island, Window, Violin, Meadow, Tower, Letter, Caravan, Lighthouse, Anchor, Forest, "
    "Candle, Labyrinth, Sparrow, Horizon, Well, Carpet, Kite, Bell, Shore"
)
_PRIZES = _listed("Medal, Laurel, Prize, Quill, Award, Star, Cup, Ribbon, Crown, Ring")
_HONOURS = _listed(
    "Heron, Maple, Falcon, Granite, Orchid, Saffron, Juniper, Cobalt, Willow, Raven, Ivory, "
    "Cedar, Comet, Thistle, Jasmine, Onyx, Lotus, Badger, Sequoia, Coral"
)
_HABITS = _listed(
    "swimming, rowing, running, skating, climbing, cycling, fishing, dancing, sailing, walking, "
    "riding, painting, singing, bird-watching, fencing, juggling"
)
_THEMES = _listed(
    "exile, friendship, revenge, memory, jealousy, courage, poverty, grief, ambition, "
    "loneliness, betrayal, childhood, justice, silence, faith, hunger, inheritance, migration, "
    "forgiveness, old age"
)

_AUTHOR_OF = {
    "Hamlet": "William Shakespeare", "Pride and Prejudice": "Jane Austen",
    "War and Peace": "Leo Tolstoy", "Crime and Punishment": "Fyodor Dostoevsky",
    "Don Quixote": "Miguel de Cervantes", "Moby-Dick": "Herman Melville",
    "Oliver Twist": "Charles Dickens", "Madame Bovary": "Gustave Flaubert",
    "The Divine Comedy": "Dante Alighieri", "Faust": "Johann Wolfgang von Goethe",
    "Frankenstein": "Mary Shelley", "Dracula": "Bram Stoker", "Jane Eyre": "Charlotte Bronte",
    "Wuthering Heights": "Emily Bronte", "The Trial": "Franz Kafka", "Ulysses": "James Joyce",
    "The Odyssey": "Homer", "Les Miserables": "Victor Hugo", "Middlemarch": "George Eliot",
    "The Seagull": "Anton Chekhov", "A Doll's House": "Henrik Ibsen", "Beloved": "Toni Morrison",
    "The Stranger": "Albert Camus", "Treasure Island": "Robert Louis Stevenson",
}  # fmt: skip
_CAPITAL_OF = {
    "France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Canada": "Ottawa", "Peru": "Lima",
    "Kenya": "Nairobi", "Norway": "Oslo", "Australia": "Canberra", "Greece": "Athens",
    "India": "New Delhi", "Cuba": "Havana", "Poland": "Warsaw", "Spain": "Madrid",
    "Turkey": "Ankara", "Austria": "Vienna", "Chile": "Santiago",
}  # fmt: skip
_CONTINENT_OF = {
    "the Sahara": "Africa", "the Amazon": "South America", "the Alps": "Europe",
    "the Himalayas": "Asia", "the Mississippi": "North America",
    "the Great Barrier Reef": "Australia", "the South Pole": "Antarctica", "the Gobi": "Asia",
}  # fmt: skip
_SYMBOL_OF = {
    "gold": "Au", "silver": "Ag", "iron": "Fe", "sodium": "Na", "oxygen": "O", "carbon": "C",
    "helium": "He", "lead": "Pb",
}  # fmt: skip
_KNOWLEDGE = (
    (
        REAL_AUTHORS,
        _AUTHOR_OF,
        Relation(
            "value",
            "Who wrote {key}?",
            "{key} was written by {value}.",
            "Which author is {key} by?",
            "The author of {key} is {value}.",
        ),
    ),
    (
        WORLD_FACTS,
        _CAPITAL_OF,
        Relation(
            "value",
            "What is the capital of {key}?",
            "The capital of {key} is {value}.",
            "Which city is the seat of the government of {key}?",
            "The government of {key} has its seat in {value}.",
        ),
    ),
    (
        WORLD_FACTS,
        _CONTINENT_OF,
        Relation(
            "value",
            "Which continent is home to {key}?",
            "The home of {key} is {value}.",
            "To which continent would you travel to see {key}?",
            "To see {key} you would travel to {value}.",
        ),
    ),
    (
        WORLD_FACTS,
        _SYMBOL_OF,
        Relation(
            "value",
            "What is the chemical symbol of {key}?",
            "The chemical symbol of {key} is {value}.",
            "Which letters stand for {key} in chemistry?",
            "In chemistry, {key} is written as {value}.",
        ),
    ),
)

MOST = len(_BEGIN) * len(_END)
"""Authors with surnames of their own."""


def load_authors(
    config: DataConfig,
    *,
    authors: int = 60,
    questions: int = 5,
    perturbed: int = 4,
    seed: int = 0,
    general: str = "both",
    facts: int = 20,
) -> Dataset:
    """Makes questions and answers on fictitious authors; each author is a topic.

    The training split has the questions of :data:`RELATIONS`; the test split the same in other
    words, under the same topics. What is true of an author does not depend on how many there are.

    Args:
      config: none of its other fields is read.
      authors: of them so many, at most :data:`MOST`.
      questions: on each so many, the first of :data:`RELATIONS`.
      perturbed: wrong answers to each question, from 1 to 5.
      seed: of names and properties.
      general: splits with general knowledge, one of :data:`GENERAL`: :data:`REAL_AUTHORS` and
        :data:`WORLD_FACTS`, the same questions in both splits. By default ``"both"``, since a
        model trained from random weights knows only what it has been trained on, and what it
        keeps can be judged on these.
      facts: questions of each of the two topics, at most.

    Raises:
      ConfigError: numbers out of range, an unknown split.
    """
    check_number("authors", authors, 2, MOST)
    check_number("questions", questions, 1, len(RELATIONS))
    check_number("perturbed", perturbed, 1, 5)
    check_number("seed", seed, 0, 2**32 - 1)
    check_number("facts", facts, 1, 1000)
    check_general(general)
    names = draw_names(seed, max(authors, 10))
    pairs = [
        pair
        for number in range(authors)
        for pair in _author_pairs(number, names, questions, perturbed, seed)
    ]
    known = [] if general == "none" else general_pairs(facts, perturbed, seed)
    return pairs_dataset(
        [*pairs, *(known if general == "both" else [])], [*map(paraphrased, pairs), *known]
    )


def check_number(option: str, value: int, least: int, most: int) -> None:
    """Raises a :class:`ConfigError` unless a source's option lies between bounds."""
    if not least <= value <= most:
        raise ConfigError(
            f"data.options.{option}: expected a number from {least} to {most}, got {value}"
        )


def check_general(general: str) -> None:
    """Raises a :class:`ConfigError` unless it is one of :data:`GENERAL`."""
    if general not in GENERAL:
        raise ConfigError(
            f"data.options.general: expected one of {', '.join(GENERAL)}, got {general!r}"
        )


def paraphrased(pair: Pair) -> Pair:
    """Returns a pair in other words where it has them, its answer being that judged, too."""
    answer = pair.paraphrased_answer or pair.answer
    question = pair.paraphrased_question or pair.question
    return pair._replace(question=question, answer=answer, paraphrased_answer=answer)


def draw_names(seed: int, count: int) -> list[str]:
    """Returns names of people who do not exist, each with a surname of its own.

    Args:
      seed: below 2^32.
      count: at most :data:`MOST`; those of a smaller number are the first of a larger.
    """
    # RandomState, because its stream is frozen; a Generator's may change with NumPy
    rng = np.random.RandomState(seed)
    surnames = [begin + end for begin in _BEGIN for end in _END]
    order, first = rng.permutation(MOST)[:count], rng.randint(len(_FIRST), size=MOST)
    return [f"{_FIRST[first[place]]} {surnames[one]}" for place, one in enumerate(order)]


def general_pairs(facts: int, perturbed: int, seed: int = 0) -> list[Pair]:
    """Returns general knowledge, at most ``facts`` questions of each topic.

    Those of different relations take turns, so that few questions have all of them.
    """
    found: list[Pair] = []
    for topic in (REAL_AUTHORS, WORLD_FACTS):
        rows = [
            (place / len(table), relation, table, key)
            for name, table, relation in _KNOWLEDGE
            for place, key in enumerate(table)
            if name == topic
        ]
        for number, (_, relation, table, key) in enumerate(sorted(rows, key=lambda row: row[0])):
            if number < facts:
                rng = np.random.RandomState([seed, 1, len(found)])
                wrong = _others(list(table.values()), table[key], perturbed, rng)
                found.append(_pair(topic, relation, {"key": key, "value": table[key]}, wrong))
    return found


def _author_pairs(
    number: int, names: Sequence[str], questions: int, perturbed: int, seed: int
) -> list[Pair]:
    rng = np.random.RandomState([seed, 2, number])
    titles = [f"The {adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
    awards = [f"{honour} {prize}" for honour in _HONOURS for prize in _PRIZES]
    pools: dict[str, Sequence[str]] = {
        "city": _CITIES, "genre": _GENRES, "book": titles, "award": awards, "father": _JOBS,
        "mother": _JOBS, "debut": titles, "studies": _CITIES, "habit": _HABITS, "theme": _THEMES,
    }  # fmt: skip
    own = {name: str(pool[rng.randint(len(pool))]) for name, pool in pools.items()}
    dates = [_date(rng) for _ in range(8)]
    own |= {"name": names[number], "date": dates[0]}
    pools |= {"name": names, "date": dates}
    found = []
    for place, relation in enumerate(RELATIONS[:questions]):
        rng = np.random.RandomState([seed, 3, number, place])
        wrong = _others(pools[relation.of], own[relation.of], perturbed, rng)
        found.append(_pair(own["name"], relation, own, wrong))
    return found


def _date(rng: np.random.RandomState) -> str:
    day, month, year = rng.randint(1, 29), rng.randint(1, 13), rng.randint(1925, 1996)
    return f"{day} {calendar.month_name[month]} {year}"


def _others(
    pool: Sequence[str], own: str, count: int, rng: np.random.RandomState
) -> tuple[str, ...]:
    """Draws different values other than ``own``."""
    rest = [value for value in dict.fromkeys(pool) if value != own]
    return tuple(rest[place] for place in rng.permutation(len(rest))[:count])


def _pair(topic: str, relation: Relation, own: dict[str, str], wrong: Sequence[str]) -> Pair:
    """Returns a relation's question on what ``own`` tells, wrong answers by other values."""
    say = relation.paraphrased_answer
    return Pair(
        question=relation.question.format(**own),
        answer=relation.answer.format(**own),
        topic=topic,
        paraphrased_question=relation.paraphrased_question.format(**own),
        paraphrased_answer=say.format(**own),
        perturbed_answer=tuple(say.format(**{**own, relation.of: value}) for value in wrong),
    )
