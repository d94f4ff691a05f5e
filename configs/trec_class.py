r"""TREC: questions about people forgotten by a transformer, with both papers' methods.

Command:   jaxunlearn run trec_class data.dir=DIR
           (DIR: a TFDS folder that holds trec)
Time:      two CPU cores, 5 minutes 40 seconds of processor time, a third of it compiling
Expected:  original .79 on test questions about people and .86 on the others; neuron_path with
           specificity and word_poison 0 and .88, retrained 0 and .86 (docs/text_classes.md)
Published: neither paper has numbers on classes of texts
"""

from jaxunlearn.config import Config, DataConfig, ModelConfig, Request, TrainConfig

PATH = {"method": "neuron_path", "samples": 36}

POISON = {"method": "word_poison", "steps": 100, "optimizer": "adam", "learning_rate": 1e-3}


def get_config() -> Config:
    """Neuronal paths as published and of all layers, poison and its ablations, baselines."""
    return Config(
        name="trec_class",
        data=DataConfig(name="trec", unseen=250),
        model=ModelConfig(name="text_transformer"),
        train=TrainConfig(epochs=8, batch_size=64, learning_rate=1e-3),
        request=Request(classes=("HUM",)),
        methods={
            "neuron_path": PATH,
            "path_specific": {**PATH, "specificity": 1.0},
            "path_resample": {**PATH, "edit": "resample"},
            "word_poison": POISON,
            "poison_no_words": {**POISON, "place": "none"},
            "poison_keep": {**POISON, "label": "keep"},
            "finetune": {"steps": 100},
            "random_label": {"steps": 50, "optimizer": "adam", "learning_rate": 3e-4},
            "gradient_ascent": {"steps": 40, "optimizer": "adam", "learning_rate": 1e-4},
        },
        retrained=3,
    )
