r"""MNIST: a DCGAN forgets 64 images (or 256, or 1024).

Command:   jaxunlearn run mnist_gan_items data.dir=DIR
           jaxunlearn run mnist_gan_items data.dir=DIR name=mnist_gan_256 request.share=.00427
           jaxunlearn run mnist_gan_items data.dir=DIR name=mnist_gan_1024 request.share=.01707
           on CPUs, a small network and a short training: model.options.width=16 train.epochs=4
Time:      as mnist_gan_class
Expected:  the discriminator has memorised nothing, also after the whole schedule at width 16, and
           the report says so
"""

from jaxunlearn.config import Config, DataConfig, GanConfig, ModelConfig, Request, TrainConfig


def get_config() -> Config:
    """Substitutes are the nearest retained images of the same digit."""
    cascade = {
        "method": "cascade",
        "substitute": "same_class_nn",
        "steps": 60,
        "learning_rate": 1e-3,
        "ratio": (1, 3),
        "batch_size": 63,
        "strength": 1.0,
        "r1": 1.0,
        "ema": 0.9,
        "pool": 512,
        "latents": 1024,
        "inversion_steps": 100,
    }
    return Config(
        name="mnist_gan_items",
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
        request=Request(share=64 / 60_000),
        methods={
            "cascade": cascade,
            "discriminator_only": {**cascade, "mode": "discriminator_only"},
            "learn_only": {**cascade, "mode": "learn_only"},
        },
        retrained=1,
    )
