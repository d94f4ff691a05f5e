"""Concepts: directions in a network's feature space that people, or patches, can show."""

from jaxunlearn.concepts.attributes import TABLES, Table, attribute_sets, load_table
from jaxunlearn.concepts.bank import Bank, load_bank, make_bank, margins, save_bank
from jaxunlearn.concepts.bottleneck import (
    Bottleneck,
    Donor,
    Scores,
    bottleneck_accuracy,
    bottleneck_logits,
    check_donor,
    choose_donor,
    concept_logits,
    concept_scores,
    fit_and_score,
    fit_bottleneck,
)
from jaxunlearn.concepts.cavs import fit_bank
from jaxunlearn.concepts.infer import (
    Concepts,
    check_bank,
    concept_shapes,
    feature_fn,
    infer_concepts,
)
from jaxunlearn.concepts.patches import Patches, patch_bank, typical_patches
from jaxunlearn.concepts.words import WordConcepts, infer_words, word_shapes

__all__ = [
    "TABLES",
    "Bank",
    "Bottleneck",
    "Concepts",
    "Donor",
    "Patches",
    "Scores",
    "Table",
    "WordConcepts",
    "attribute_sets",
    "bottleneck_accuracy",
    "bottleneck_logits",
    "check_bank",
    "check_donor",
    "choose_donor",
    "concept_logits",
    "concept_scores",
    "concept_shapes",
    "feature_fn",
    "fit_and_score",
    "fit_bank",
    "fit_bottleneck",
    "infer_concepts",
    "infer_words",
    "load_bank",
    "load_table",
    "make_bank",
    "margins",
    "patch_bank",
    "save_bank",
    "typical_patches",
    "word_shapes",
]
