r"""MNIST: every method beside retrained models, three seeds, on a dense network.

Command:   jaxunlearn bench bench_mnist data.dir=DIR
           (DIR: a TFDS folder that holds mnist; without data.dir it is downloaded)
           a part: jaxunlearn bench bench_mnist data.dir=DIR requests=class,random \
             methods=finetune,random_label,scrub,ssd
Time:      not run whole yet
Expected:  not run whole yet
"""

from jaxunlearn.config import (
    BenchConfig,
    Config,
    DataConfig,
    ModelConfig,
    Request,
    SubClass,
    TrainConfig,
)


def get_config() -> BenchConfig:
    """As on the digits, but for fewer seeds and classes by themselves."""
    return BenchConfig(
        base=Config(
            name="bench_mnist",
            seeds=3,
            retrained=2,
            data=DataConfig(name="mnist", unseen=1000),
            model=ModelConfig(name="mlp", options={"features": (64,)}),
            train=TrainConfig(epochs=5, batch_size=128, learning_rate=2e-3),
            methods={
                "neuron_path": {"per_sample": 20, "neurons": 20},
                "concept_poison": {"bank": "digits"},
            },
            metrics=("linear_probe", "relearn_steps"),
        ),
        requests={
            "class": Request(classes=(3,)),
            "several": Request(classes=(1, 7)),
            "each": Request(each=True, classes=(0, 4, 8)),
            "random": Request(share=0.1),
            "subclass": SubClass(label=7),
            "in turn": Request(classes=(3, 5, 8), in_turn=True),
        },
    )
