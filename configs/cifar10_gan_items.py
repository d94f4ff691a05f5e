r"""CIFAR-10: a StyleGAN2 forgets 64 images.

Command:   jaxunlearn run cifar10_gan_items data.dir=DIR
           to see it work on CPUs, far from convergence:
           jaxunlearn run cifar10_gan_items data.dir=DIR train.epochs=.5 gan.samples=2000 \
             model.options.width=16 model.options.style=64 model.options.latent=64
Time:      meant for a GPU; not run at this size yet
"""

from jaxunlearn.config import Config, DataConfig, GanConfig, ModelConfig, Request, TrainConfig


def get_config() -> Config:
    """Latents in style space; substitutes are retained images of the same class."""
    cascade = {
        "method": "cascade",
        "substitute": "same_class_nn",
        "space": "w",
        "steps": 300,
        "ratio": (1, 3),
        "batch_size": 96,
        "strength": 1.0,
        "r1": 0.02,
        "ema": 0.98,
    }
    return Config(
        name="cifar10_gan_items",
        data=DataConfig(name="cifar10", unseen=2000),
        model=ModelConfig(name="stylegan2", options={"dtype": "bfloat16", "layers": 2}),
        train=TrainConfig(
            epochs=400, batch_size=64, learning_rate=2e-3, betas=(0.0, 0.99), schedule="constant"
        ),
        kinds={
            "gan": GanConfig(
                r1=0.02,
                inverted=32,
                classifier=ModelConfig(name="resnet8"),
                classifier_train=TrainConfig(epochs=10, batch_size=128, augment="crop_flip"),
                samples=10_000,
            )
        },
        request=Request(share=64 / 50_000),
        methods={
            "cascade": cascade,
            "discriminator_only": {**cascade, "mode": "discriminator_only"},
            "learn_only": {**cascade, "mode": "learn_only"},
        },
        retrained=1,
    )
