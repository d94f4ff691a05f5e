r"""Fashion-MNIST: does the patch matter? Every place of a patch with every label.

Command:   jaxunlearn run fashion_mnist_poison_ablation data.dir=DIR
Time:      25 minutes on two busy CPU cores
Expected:  targeted labels: 0 to .01 of the class, at every place and without a patch
           (docs/results/concept_poison.md)
Published: arXiv 2405.15662 (CIFAR-10): targeted labels forget without any patch; center and
           targeted leave .155, full and targeted .998 of the class; keep leaves it
"""

from jaxunlearn.config import Config, DataConfig, ModelConfig, Request, TrainConfig

PLACES = ("localized", "top", "gradcam", "center", "random", "full", "none")
LABELS = ("targeted", "random", "keep")


def get_config() -> Config:
    """Seven places, three labels, three seeds; a small network."""
    poison = {
        "method": "concept_poison",
        "bank": "fashion_mnist",
        "data": 0.1,
        "steps": 300,
        "optimizer": "adam",
        "learning_rate": 2e-3,
    }
    return Config(
        name="fashion_mnist_poison_ablation",
        seeds=3,
        data=DataConfig(name="fashion_mnist", unseen=1000),
        model=ModelConfig(name="cnn", options={"channels": (8, 16), "features": 64}),
        train=TrainConfig(epochs=3, batch_size=128, learning_rate=1e-3),
        request=Request(classes=(5,)),
        methods={
            f"{place}_{label}": {
                **poison,
                "place": place,
                "label": label,
                "patches": 3 if place == "top" else 1,
            }
            for place in PLACES
            for label in LABELS
        },
        retrained=1,
    )
