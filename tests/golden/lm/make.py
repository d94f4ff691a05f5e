"""Writes the checkpoints of this folder, with logits and greedy generations: `python make.py`.

Needs torch and transformers (written with 2.14 and 5.24). Logits are computed in float64 from the
weights as they are stored; positions are counted by the mask.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "n_inner": 72}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
torch.manual_seed(0)
MODELS = {
    "gpt2": GPT2LMHeadModel(GPT2Config(**GPT2, bos_token_id=0, eos_token_id=1)),
    "llama": LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            num_key_value_heads=2,
            head_dim=12,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=LLAMA3,
        )
    ),
    "mistral": MistralForCausalLM(
        MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=40, rope_parameters=LINEAR)
    ).bfloat16(),
    "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=1, rms_norm_eps=1e-3)),
}


def older_spelling(folder):
    """Writes a configuration as transformers 4 did."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    rng = np.random.default_rng(0)
    noise = torch.Generator().manual_seed(0)
    tokens, mask = rng.integers(0, 97, (3, 20)), np.ones((3, 20), np.int64)
    mask[1, :7], mask[2, :15] = 0, 0
    places = torch.tensor((mask.cumsum(1) - 1).clip(0))
    given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    for name, model in MODELS.items():
        with torch.no_grad():
            for parameter in model.parameters():  # fresh biases are 0, and norms 1
                drawn = torch.randn(parameter.shape, generator=noise)
                parameter.add_((drawn * (0.3 if parameter.ndim == 1 else 0.15)).to(parameter.dtype))
        folder = HERE / name
        model.save_pretrained(folder, max_shard_size="30KB" if name == "llama" else "5GB")
        if name == "mistral":
            older_spelling(folder)
        # read again: in a model cast to bfloat16 the frequencies of rotations are cast, too
        model = type(model).from_pretrained(folder, dtype=torch.float64).eval()
        with torch.no_grad():
            logits = model(**given, position_ids=places).logits.float().numpy()
            written = model.generate(
                **given, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        np.savez_compressed(
            HERE / f"{name}.npz",
            tokens=tokens.astype(np.int32),
            mask=mask.astype(bool),
            logits=logits,
            written=written[:, 20:].numpy().astype(np.int32),
        )


if __name__ == "__main__":
    main()
