r"""CIFAR-10, ResNet-18: methods that a network of this size allows, a class and random 10 %.

Command:   jaxunlearn bench bench_cifar10_resnet18 data.dir=DIR at_a_time=2
           proven small, without a GPU, on the embedded digits:
           jaxunlearn bench bench_cifar10_resnet18 data.name=digits model.name=resnet8 \
             model.options={} train.epochs=1 train.augment=none seeds=2 retrained=2 \
             data.unseen=400 methods=finetune,ssd
Time:      meant for a GPU, and not run whole yet
Published: random 10 %, accuracy in % on forget (100 less UA) / retain / test: retrained 94.76 /
           100 / 94.26, fine-tuning 99.37 / 99.88 / 94.06 (SalUn, arXiv 2310.12508, from
           secondary sources)
"""

from jaxunlearn.config import BenchConfig, Config, DataConfig, ModelConfig, Request, TrainConfig


def get_config() -> BenchConfig:
    """Without what solves for all parameters or trains several networks."""
    return BenchConfig(
        base=Config(
            name="bench_cifar10_resnet18",
            seeds=3,
            retrained=2,
            data=DataConfig(name="cifar10", unseen=1000),
            model=ModelConfig(name="resnet18"),
            train=TrainConfig(
                epochs=60,
                batch_size=128,
                optimizer="sgd",
                learning_rate=0.1,
                weight_decay=5e-4,
                augment="crop_flip",
            ),
            methods={
                "finetune": {},
                "gradient_ascent": {},
                "random_label": {},
                "neggrad_plus": {},
                "salun": {},
                "l1_sparse": {},
                "bad_teacher": {},
                "scrub": {},
                "ssd": {},
                "loss_free_ssd": {},
                "boundary_shrink": {},
                "boundary_expand": {},
                "duck": {},
                "cf_k": {},
                "eu_k": {},
                "msg": {},
                "ct": {},
                "unsir": {},
                "neuron_path": {"per_sample": 50, "neurons": 100, "samples": 36},
                "concept_poison": {"bank": "cifar10", "data": 0.1},
            },
        ),
        requests={"class": Request(classes=(4,)), "random": Request(share=0.1)},
        every=False,
    )
