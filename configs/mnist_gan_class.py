r"""MNIST: a DCGAN forgets to draw a digit.

Command:   jaxunlearn run mnist_gan_class data.dir=DIR
           (DIR: a TFDS folder that holds mnist; without data.dir it is downloaded)
           on CPUs, a small network and a short training:
           jaxunlearn run mnist_gan_class data.dir=DIR model.options.width=16 train.epochs=4
Time:      see docs/results/gan_cascade.md
Expected:  share of the digit .10 -> below .01, C-FID below the original's
"""

from jaxunlearn.config import Config, DataConfig, GanConfig, ModelConfig, Request, TrainConfig


def get_config() -> Config:
    """The published data set; network, schedule and quality measures are ours."""
    cascade = {
        "method": "cascade",
        "steps": 60,
        "learning_rate": 1e-3,
        "ratio": (1, 3),
        "batch_size": 63,
        "strength": 1.0,
        "label_strength": 0.5,
        "r1": 1.0,
        "ema": 0.9,
        "pool": 2048,
        "latents": 128,
    }
    return Config(
        name="mnist_gan_class",
        data=DataConfig(name="mnist", unseen=2000),
        model=ModelConfig(name="dcgan", options={"width": 64}),
        train=TrainConfig(
            epochs=25, batch_size=64, learning_rate=5e-4, betas=(0.5, 0.999), schedule="constant"
        ),
        kinds={
            "gan": GanConfig(
                r1=1.0,
                inverted=32,
                inversion_steps=100,
                classifier=ModelConfig(name="mlp", options={"features": (256, 64)}),
                classifier_train=TrainConfig(epochs=5, batch_size=128),
            )
        },
        request=Request(classes=(8,)),
        methods={
            "cascade": cascade,
            "learn_only": {**cascade, "mode": "learn_only"},
            "discriminator_ascent": {"steps": 60, "ema": 0.9},
            "adapt_unlearn": {"steps": 60, "adapt_steps": 60, "r1": 1.0, "ema": 0.9, "pool": 2048},
        },
        retrained=1,
    )
