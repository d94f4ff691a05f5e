r"""CIFAR-10: a StyleGAN2 forgets to draw a class (cat).

Command:   jaxunlearn run cifar10_gan_class data.dir=DIR
           to see it work on CPUs, far from convergence:
           jaxunlearn run cifar10_gan_class data.dir=DIR train.epochs=.5 gan.samples=2000 \
             model.options.width=16 model.options.style=64 model.options.latent=64
Time:      meant for a GPU; not run at this size yet
Published: arXiv 2308.09881 tells, in its abstract, up to 284 times the speed of retraining
"""

from jaxunlearn.config import Config, DataConfig, GanConfig, ModelConfig, Request, TrainConfig

# as the style-based networks are trained on CIFAR-10: lazy R1, no momentum
TRAIN = TrainConfig(
    epochs=400, batch_size=64, learning_rate=2e-3, betas=(0.0, 0.99), schedule="constant"
)
GAN = GanConfig(
    r1=0.02,
    inverted=32,
    classifier=ModelConfig(name="resnet8"),
    classifier_train=TrainConfig(epochs=10, batch_size=128, augment="crop_flip"),
    samples=10_000,
)
MODEL = ModelConfig(name="stylegan2", options={"dtype": "bfloat16", "layers": 2})


def get_config() -> Config:
    """Substitutes in style space: the original's image of a shrunk style, and others' images."""
    cascade = {
        "method": "cascade",
        "steps": 300,
        "ratio": (1, 3),
        "batch_size": 96,
        "strength": 1.0,
        "label_strength": 0.5,
        "r1": 0.02,
        "ema": 0.98,
    }
    return Config(
        name="cifar10_gan_class",
        data=DataConfig(name="cifar10", unseen=2000),
        model=MODEL,
        train=TRAIN,
        kinds={"gan": GAN},
        request=Request(classes=(3,)),
        methods={
            "cascade": cascade,
            "cascade_truncation": {
                **cascade, "substitute": "truncation", "psi": 0.3, "space": "w",
            },
            "learn_only": {**cascade, "mode": "learn_only"},
        },
        retrained=1,
    )  # fmt: skip
