r"""TOFU: a user's own Llama of 1 to 8 billion parameters, ten authors forgotten with adapters.

Command:   jaxunlearn run tofu_llama data.dir=DIR language.base=FOLDER
           (DIR: a TFDS folder that holds tofu; FOLDER: a checkpoint in the layout of Hugging Face
           with its tokenizer; language.original=FOLDER2 takes one that was trained on TOFU before)
           what it needs, before anything is made, FOLDER with config.json alone:
           jaxunlearn plan tofu_llama data.dir=DIR language.base=FOLDER --devices 8 --memory 80GB
Needs:     GPUs or TPUs; docs/language_scaling.md has the account of 7 billion parameters
Time:      not measured: only sizes of a test were run, on 8 virtual devices
Expected:  not measured
Published: arXiv 2401.06121 has numbers on Llama 2 7B, fine-tuned in full
"""

from jaxunlearn.config import Config, DataConfig, LanguageConfig, ModelConfig, Request, TrainConfig

ADAPTERS = {"lora": 8, "learning_rate": 1e-4, "optimizer": "adamw", "weight_decay": 0.01}

ALL = (r"(query|key|value|output|gate|up|down)/kernel$",)


def get_config() -> Config:
    """Divided parameters, adapters for every method, one model retrained from the same base."""
    own = {**ADAPTERS, "lora_on": ALL, "steps": 125}
    return Config(
        name="tofu_llama",
        data=DataConfig(name="tofu"),
        model=ModelConfig(name="llama", options={"dtype": "bfloat16", "remat": True}),
        train=TrainConfig(
            epochs=5, batch_size=16, optimizer="adamw", learning_rate=1e-4, weight_decay=0.01
        ),
        kinds={
            "language": LanguageConfig(
                weights="bfloat16", lora=8, template="llama2", relearning_steps=0
            )
        },
        request=Request(share=0.05),
        methods={"grad_diff": own, "npo": own, "concept_words": own},
        retrained=1,
        mesh="fsdp",
    )
