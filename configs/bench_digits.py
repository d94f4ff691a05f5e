"""Scanned digits: every method beside retrained models, five seeds, six kinds of requests.

Command:   jaxunlearn bench bench_digits
           jaxunlearn bench bench_digits --tune --presets configs/presets/digits.json
Time:      6 min 9 s on two quiet cores, nothing compiled before; the tuning 2 minutes
Expected:  DUCK shares the first rank on every request; the tables of
           docs/results/bench_digits.md
"""

from jaxunlearn.config import BENCH_REQUESTS, DEFAULT_METHODS, BenchConfig, Config, Request


def get_config() -> BenchConfig:
    """The network of the embedded experiment; bank and budget of what paper 1 and 2 need."""
    return BenchConfig(
        base=Config(
            name="bench_digits",
            seeds=5,
            retrained=2,
            methods={
                "neuron_path": DEFAULT_METHODS["neuron_path"],
                "concept_poison": {"bank": "digits"},
                # with 64 it takes four times as long, more than any other
                "ntk": {"samples": 32},
            },
            metrics=("linear_probe", "relearn_steps"),
        ),
        # four classes by themselves, to stay within ten minutes
        requests={**BENCH_REQUESTS, "each": Request(each=True, classes=(0, 2, 4, 6))},
        preset="digits",
    )
