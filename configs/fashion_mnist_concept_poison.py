r"""Fashion-MNIST: sandals, or each class by itself, forgotten through their concepts.

Command:   jaxunlearn run fashion_mnist_concept_poison data.dir=DIR
           each class by itself, the methods on all classes as one program:
           jaxunlearn run fashion_mnist_concept_poison data.dir=DIR name=fashion_each \
             request.each=true seeds=1 model.name=cnn \
             model.options.channels=8,16 model.options.features=64
Time:      25 minutes on two busy CPU cores, 3 seeds
Expected:  original .975 on test sandals and .89 on the others; concept_poison 0 and .89, with or
           without patch, with named or learned concepts (docs/results/concept_poison.md)
Published: arXiv 2405.15662 has no numbers on this data set
"""

from jaxunlearn.config import Config, DataConfig, ModelConfig, Request, TrainConfig

# a tenth of the images, their features computed once: what is trained is the head alone
POISON = {
    "method": "concept_poison",
    "bank": "fashion_mnist",
    "data": 0.1,
    "steps": 300,
    "optimizer": "adam",
    "learning_rate": 2e-3,
}


def get_config() -> Config:
    """With a tenth of the images: named or learned concepts, no patches, random labels."""
    return Config(
        name="fashion_mnist_concept_poison",
        seeds=3,
        data=DataConfig(name="fashion_mnist", unseen=1000),
        model=ModelConfig(name="resnet8"),
        train=TrainConfig(epochs=2, batch_size=128, learning_rate=3e-3),
        request=Request(classes=(5,)),
        methods={
            "concept_poison": POISON,
            "poison_learned": {**POISON, "bank": "patches"},
            "poison_no_patch": {**POISON, "place": "none"},
            "poison_random": {**POISON, "label": "random"},
            "random_label": {"steps": 50},
        },
        retrained=1,
    )
