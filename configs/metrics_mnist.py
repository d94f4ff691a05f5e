"""MNIST: every metric judged by two pools of 30 models, with and without class 3.

Command:   jaxunlearn judge-metrics metrics_mnist data.dir=DIR
           (DIR: a TFDS folder that holds mnist; without data.dir it is downloaded)
Time:      10 minutes of processor time, most of it support vector machines
Expected:  as metrics_digits, but the linear probe tells the pools apart, too
"""

from jaxunlearn.config import Config, DataConfig, ModelConfig, Request, TrainConfig


def get_config() -> Config:
    """A small dense network, so that 64 of them are trained in minutes."""
    return Config(
        name="metrics_mnist",
        data=DataConfig(name="mnist", unseen=1000),
        model=ModelConfig(name="mlp", options={"features": (64,)}),
        train=TrainConfig(epochs=3, batch_size=128, learning_rate=2e-3),
        request=Request(classes=(3,)),
        methods={
            "neuron_path": {"per_sample": 20, "neurons": 20},
            "finetune": {"steps": 200},
            "gradient_ascent": {"steps": 30, "optimizer": "adam", "learning_rate": 1e-4},
            "random_label": {"steps": 100},
        },
    )
