"""Scanned digits: a small GAN forgets to draw the digit 3.

Command:   jaxunlearn run digits_gan_class
Time:      under two minutes on two CPU cores
Expected:  share of threes .10 -> below .005; C-FID below the original's; retrained 0 to .01
"""

from jaxunlearn.config import Config, DataConfig, GanConfig, ModelConfig, Request, TrainConfig


def get_config() -> Config:
    """Cascaded unlearning in all modes, beside two retrained GANs."""
    cascade = {"method": "cascade", "steps": 150, "learning_rate": 1e-3, "ratio": (1, 2), "r1": 0.5}
    return Config(
        name="digits_gan_class",
        data=DataConfig(name="digits", unseen=200),
        model=ModelConfig(name="mlp_gan"),
        train=TrainConfig(
            epochs=800, batch_size=64, learning_rate=5e-4, betas=(0.5, 0.999), schedule="constant"
        ),
        kinds={
            "gan": GanConfig(
                r1=0.5,
                classifier=ModelConfig(name="mlp", options={"features": (128, 64)}),
                classifier_train=TrainConfig(epochs=30, batch_size=64),
            )
        },
        request=Request(classes=(3,)),
        methods={
            "cascade": cascade,
            "cascade_average": {**cascade, "substitute": "average"},
            "unlearn_then_learn": {**cascade, "mode": "unlearn_then_learn"},
            "generator_only": {**cascade, "mode": "generator_only"},
            "discriminator_only": {**cascade, "mode": "discriminator_only"},
            "learn_only": {**cascade, "mode": "learn_only"},
            "discriminator_ascent": {"steps": 50},
            "adapt_unlearn": {"steps": 150, "adapt_steps": 150, "r1": 0.5},
        },
        retrained=2,
    )
