"""MNIST: paper 1's network and setting, class 1 forgotten with 36 unseen images.

Command:   jaxunlearn run mnist_neuron_path data.dir=DIR
           (DIR: a TFDS folder that holds mnist; without data.dir it is downloaded)
Time:      13 minutes on two CPU cores, three retrained models included
Expected:  original .990 on test; neuron_path 0 on the class, .997 -> .990 on the others
Published: At .016, Ag .984, 33x faster than retraining (arXiv 2410.23693)
"""

from jaxunlearn.config import Config, DataConfig, ModelConfig, Request, TrainConfig


def get_config() -> Config:
    """The published form, its head-only variant, both noise controls, and baselines."""
    path = {"method": "neuron_path", "per_sample": 50, "neurons": 80, "samples": 36}
    return Config(
        name="mnist_neuron_path",
        data=DataConfig(name="mnist", unseen=1000),
        model=ModelConfig(name="cnn"),
        train=TrainConfig(epochs=2, batch_size=128, learning_rate=1e-3),
        request=Request(classes=(1,)),
        methods={
            "neuron_path": path,
            "path_head_only": {**path, "weights": ("class",)},
            "path_gaussian": {**path, "edit": "gaussian"},
            "path_laplace": {**path, "edit": "laplace"},
            "finetune": {"steps": 100},
            "gradient_ascent": {"steps": 20, "learning_rate": 1e-4, "optimizer": "adam"},
            "random_label": {"steps": 50},
        },
        oracles=3,
    )
