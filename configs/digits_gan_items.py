"""Scanned digits: a small GAN forgets 64 images that its discriminator has memorised.

Command:   jaxunlearn run digits_gan_items
Time:      under three minutes on two CPU cores
Expected:  the discriminator's membership AUC falls to that of retrained ones, C-FID stays
"""

from jaxunlearn.config import Config, DataConfig, GanConfig, ModelConfig, Request, TrainConfig


def get_config() -> Config:
    """Fake labels side by side, beside two retrained GANs."""
    cascade = {
        "method": "cascade",
        "substitute": "same_class_nn",
        "steps": 400,
        "learning_rate": 1e-3,
        "ratio": (1, 2),
        "strength": 1.0,
        "label_strength": 3.0,
        "r1": 0.5,
        "ema": 0.998,
    }
    return Config(
        name="digits_gan_items",
        data=DataConfig(name="digits", unseen=400),
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
        request=Request(share=64 / 997),
        methods={
            "cascade": cascade,
            "label_zero": {**cascade, "label": "zero"},
            "label_mean": {**cascade, "label": "holdout_mean"},
            "label_mse": {**cascade, "label": "holdout_logit_mse"},
            "discriminator_only": {**cascade, "mode": "discriminator_only"},
            "learn_only": {**cascade, "mode": "learn_only"},
        },
        retrained=2,
    )
