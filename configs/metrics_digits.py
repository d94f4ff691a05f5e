"""Scanned digits: every metric judged by two pools of 30 models, with and without class 3.

Command:   jaxunlearn judge-metrics metrics_digits
Time:      3 minutes on two CPU cores
Expected:  membership attacks and agreement with retrained models tell the pools apart; what
           looks at retained images alone does not; few stay as they are in relearning
"""

from jaxunlearn.config import Config


def get_config() -> Config:
    """The embedded experiment, with methods that leave different traces."""
    return Config(
        name="metrics_digits",
        methods={
            "neuron_path": {"per_sample": 20, "neurons": 20},
            "finetune": {"steps": 100},
            "gradient_ascent": {"steps": 30, "optimizer": "adam", "learning_rate": 1e-4},
            "random_label": {"steps": 50},
        },
    )
