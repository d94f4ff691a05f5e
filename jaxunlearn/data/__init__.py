"""Data sets, requests to forget, the sets they make, and batches drawn from these."""

from jaxunlearn.core.registry import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "jaxunlearn.config": ["DataConfig", "Request"],
        "jaxunlearn.core.types": ["Batch", "Batches", "Examples", "Sets", "Subset"],
        "jaxunlearn.data.dataset": ["Dataset", "make_dataset"],
        "jaxunlearn.data.examples": [
            "as_examples", "fetch", "inputs_like", "normalise", "resident", "unchanged",
        ],
        "jaxunlearn.data.requests": [
            "describe", "forget_class", "forget_classes", "forget_indices", "forget_pairs",
            "forget_random", "forget_words", "resolve",
        ],
        "jaxunlearn.data.sets": [
            "make_sets", "normalise_by_retained", "num_examples", "random_subsets", "stack_sets",
            "subset", "whole",
        ],
        "jaxunlearn.data.sources": ["SOURCES", "Source", "load_dataset", "register_source"],
        "jaxunlearn.data.sources.facts": ["Facts", "make_facts"],
        "jaxunlearn.data.sources.folders": ["ImageFolder"],
        "jaxunlearn.data.streams": ["Stream", "stream"],
        "jaxunlearn.data.texts": [
            "Pair", "labelled_dataset", "pairs_dataset", "to_bytes", "to_texts",
        ],
    },
)  # fmt: skip
