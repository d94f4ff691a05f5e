"""CIFAR-10: four methods on a dense network, random 10 %, as a paper on condensation has them.

Command:   jaxunlearn bench bench_cifar10_mlp data.dir=DIR
           (DIR: a TFDS folder that holds cifar10; without data.dir it is downloaded)
           one seed: ... seeds=1 retrained=1
Time:      40 minutes on one to two cores; docs/results/bench_cifar10.md
Published: accuracy in % on retain / forget: retrained 93.6 / 50.4; fine-tuning 96.9 / 77.9;
           l1-sparse 92.0 / 61.7; bad teacher 76.6 / 35.8; condensation 89.5 / 60.7; the original
           92.2 on training and 52.2 on test images. From the repository of arXiv 2402.00195, one
           seed, on a GPU; there an attack by logistic regression, here the AUC of the loss
"""

from jaxunlearn.config import BenchConfig, Config, DataConfig, ModelConfig, Request, TrainConfig

BATCH, EPOCHS = 256, 30
EPOCH = 45_000 // BATCH + 1  # steps in 45,000 retained images
ADAM = {"optimizer": "adam", "learning_rate": 1e-3}


def get_config() -> BenchConfig:
    """Adam with rate .001 and 30 epochs for all but the condensation."""
    return BenchConfig(
        base=Config(
            name="bench_cifar10_mlp",
            seeds=3,
            retrained=2,
            data=DataConfig(name="cifar10", unseen=1000),
            model=ModelConfig(name="mlp", options={"features": (512, 128)}),
            train=TrainConfig(
                epochs=EPOCHS,
                batch_size=BATCH,
                optimizer="adam",
                learning_rate=1e-3,
                schedule="constant",
            ),
            methods={
                "finetune": {"steps": EPOCHS * EPOCH, **ADAM},
                # the first 15 epochs are penalised
                "l1_sparse": {
                    "steps": EPOCHS * EPOCH,
                    "gamma": 1e-4,
                    "penalised": 0.5,
                    "form": "subgradient",
                    **ADAM,
                },
                # 30 epochs of the forget set and 30 % of the retain set, mixed
                "bad_teacher": {
                    "steps": EPOCHS * (5000 + 13_500) // BATCH,
                    "share": 0.3,
                    "forget_weight": 5000 / (5000 + 13_500),
                    "temperature": 4.0,
                    **ADAM,
                },
                # 450 buckets a class; in each round one epoch of each of two parts
                "condense": {
                    "steps": 2 * EPOCHS * EPOCH,
                    "bucket_size": 11,
                    "rounds": EPOCHS,
                    "optimizer": "adam",
                    "learning_rate": 3e-3,
                },
            },
        ),
        requests={"random": Request(share=0.1)},
        every=False,
    )
