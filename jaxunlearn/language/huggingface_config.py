"""The configuration of a checkpoint, ``config.json``, read into a decoder's shape and written.

Both spellings are read: transformers 5 writes ``rope_parameters`` and ``dtype``, 4 wrote
``rope_theta``, ``rope_scaling`` and ``torch_dtype``. A field that changes what is computed, in a
way that this library does not follow, is refused by name.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.core.errors import CheckpointError, ConfigError, brief, sentence
from jaxunlearn.language.decoder import ARCHITECTURES, DecoderShape, Rope

CONFIG = "config.json"

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
# fields that change what is computed, and the values at which they do not
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "scale_attn_weights": (True, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "attention_chunk_size": (None,),
    "clip_qkv": (None,),
    "qk_norm": (False, None),
    "use_qk_norm": (False, None),
    "qk_layernorm": (False, None),
    "alibi": (False, None),
    "partial_rotary_factor": (1, None),
    "rope_interleave": (False, None),
    "num_experts": (0, None),
    "num_local_experts": (0, None),
    "embedding_multiplier": (1, None),
    "residual_multiplier": (1, None),
    "attention_multiplier": (1, None),
    "logits_scaling": (1, None),
    "logit_scale": (1, None),
    "use_parallel_residual": (False, None),
}


def shape_of(folder: str | os.PathLike[str], *, context: int | None = None) -> DecoderShape:
    """Reads what a decoder a checkpoint is of, from its ``config.json`` alone.

    Args:
      folder: of the checkpoint.
      context: read texts up to so many tokens, fewer than the model could; for one with a
        sliding window, which does not matter to texts within it.

    Raises:
      CheckpointError: no configuration, or one of a model that this library does not compute:
        the message names the field.
    """
    path = Path(os.path.expanduser(folder)) / CONFIG
    config = read_json(path)
    for key, neutral in _NEUTRAL.items():
        if config.get(key, neutral[0]) not in neutral:
            _refuse(path, key, f"{neutral[0]!r}, as others are not supported", config[key])
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        _refuse(path, "model_type", f"one of {', '.join(ARCHITECTURES)}", kind)
    try:
        return (_gpt2_shape if kind == "gpt2" else _rotary_shape)(path, config, context)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _gpt2_shape(path: Path, config: Mapping[str, Any], context: int | None) -> DecoderShape:
    width, heads = _size(path, config, "n_embd"), _size(path, config, "n_head")
    longest = _size(path, config, "n_positions")
    if context not in (None, longest):
        raise ConfigError(
            f"context: expected {longest}, as GPT-2 learned its positions, got {context}"
        )
    return DecoderShape(
        architecture="gpt2",
        vocabulary=_size(path, config, "vocab_size"),
        context=longest,
        depth=_size(path, config, "n_layer"),
        width=width,
        heads=heads,
        kv_heads=heads,
        head_dim=_divided(path, "n_head", width, heads),
        hidden=_size(path, config, "n_inner", 4 * width),
        activation=_activation(path, config, "activation_function", "gelu_new"),
        epsilon=_number(path, "layer_norm_epsilon", config.get("layer_norm_epsilon", 1e-5)),
        rope=None,
        tied=_flag(path, config, "tie_word_embeddings", True),
        query_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


def _rotary_shape(path: Path, config: Mapping[str, Any], context: int | None) -> DecoderShape:
    kind = config["model_type"]
    width, heads = _size(path, config, "hidden_size"), _size(path, config, "num_attention_heads")
    depth = _size(path, config, "num_hidden_layers")
    longest = _size(path, config, "max_position_embeddings")
    if context is not None and (type(context) is not int or not 0 < context <= longest):
        raise ConfigError(f"context: expected 1 to {longest} tokens, got {context!r}")
    shorter = longest if context is None else context
    _refuse_window(path, config, depth, shorter)
    # older configurations of Llama have one head of keys for each of queries and do not say so
    kv_heads = _size(path, config, "num_key_value_heads", heads if kind == "llama" else None)
    bias = _flag(path, config, "attention_bias", False)
    mlp_bias = _flag(path, config, "mlp_bias", False)
    if kind != "llama" and (bias or mlp_bias):
        key = "attention_bias" if bias else "mlp_bias"
        _refuse(path, key, f"False for {kind}, as others are not supported", True)
    given = config.get("head_dim")
    return DecoderShape(
        architecture=kind,
        vocabulary=_size(path, config, "vocab_size"),
        context=shorter,
        depth=depth,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_divided(path, "num_attention_heads", width, heads)
        if given is None
        else _size(path, config, "head_dim"),
        hidden=_size(path, config, "intermediate_size"),
        activation=_activation(path, config, "hidden_act", "silu"),
        epsilon=_number(path, "rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        rope=_rope(path, config, longest),
        tied=_flag(path, config, "tie_word_embeddings", False),
        query_bias=bias or kind == "qwen2",
        output_bias=bias,
        mlp_bias=mlp_bias,
    )


def _refuse_window(path: Path, config: Mapping[str, Any], depth: int, context: int) -> None:
    """Refuses a model that would not look at all tokens before."""
    kinds = config.get("layer_types") or []
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        _refuse(path, "layer_types", "full_attention", min(unknown))
    kind, window = config["model_type"], config.get("sliding_window", 4096)
    if kind == "qwen2":
        begins = config.get("max_window_layers", depth)
        slides = bool(config.get("use_sliding_window", False)) and begins < depth
        slides = "sliding_attention" in kinds if kinds else slides
    else:
        slides = kind == "mistral" or "sliding_attention" in kinds
    if slides and window is not None and _number(path, "sliding_window", window) < context:
        _refuse(
            path,
            "sliding_window",
            f"at least the context of {context}, or texts no longer than it: context={window}",
            window,
        )


def _rope(path: Path, config: Mapping[str, Any], longest: int) -> Rope:
    # transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping) or any(isinstance(one, Mapping) for one in given.values()):
        _refuse(path, "rope_parameters", "one rotation for all blocks", given)
    number = functools.partial(_number, path)
    theta = number("rope_theta", given.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("partial_rotary_factor", 1) not in (1, None):
        _refuse(path, "partial_rotary_factor", "1", given["partial_rotary_factor"])
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, number("factor", given.get("factor")))
    if kind == "llama3":
        key = "original_max_position_embeddings"
        return Rope(
            theta,
            kind,
            number("factor", given.get("factor")),
            number("low_freq_factor", given.get("low_freq_factor")),
            number("high_freq_factor", given.get("high_freq_factor")),
            int(number(key, given.get(key, config.get(key, longest)))),
        )
    return _refuse(path, "rope_type", "one of default, linear, llama3", kind)


def _refuse(path: Path, key: str, expected: str, got: Any) -> Any:
    raise CheckpointError(f"{path}: {key}: expected {expected}, got {brief(got)}")


def _size(path: Path, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    found = config.get(key)
    found = default if found is None else found
    if type(found) is not int or found < 1:
        _refuse(path, key, "a positive integer", found)
    assert isinstance(found, int)
    return found


def _number(path: Path, key: str, found: Any) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
        _refuse(path, key, "a positive number", found)
    return float(found)


def _flag(path: Path, config: Mapping[str, Any], key: str, default: bool) -> bool:
    found = config.get(key, default)
    if not isinstance(found, bool):
        _refuse(path, key, "true or false", found)
    return bool(found)


def _divided(path: Path, key: str, width: int, heads: int) -> int:
    if width % heads:
        _refuse(path, key, f"a divisor of the width {width}", heads)
    return width // heads


def _activation(path: Path, config: Mapping[str, Any], key: str, default: str) -> str:
    found = config.get(key, default)
    if found not in _ACTIVATIONS:
        _refuse(path, key, f"one of {', '.join(_ACTIVATIONS)}", found)
    return _ACTIVATIONS[found]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a mapping of a checkpoint.

    Raises:
      CheckpointError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: expected a checkpoint with {path.name}, got none")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected JSON, got {sentence(error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a mapping, got {brief(found)}")
    return found


def config_of(shape: DecoderShape, dtype: str) -> dict[str, Any]:
    """Returns the configuration of a shape, as transformers 4 and 5 read it."""
    return dict(_config_fields(shape, dtype))


def _config_fields(shape: DecoderShape, dtype: str) -> Iterator[tuple[str, Any]]:
    names = {
        "gpt2": "GPT2LMHeadModel",
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
    }
    yield "architectures", [names[shape.architecture]]
    yield "model_type", shape.architecture
    yield "vocab_size", shape.vocabulary
    yield "tie_word_embeddings", shape.tied
    yield "torch_dtype", dtype
    act = shape.activation
    if shape.rope is None:
        yield "n_positions", shape.context
        yield "n_layer", shape.depth
        yield "n_embd", shape.width
        yield "n_head", shape.heads
        yield "n_inner", shape.hidden
        yield "activation_function", "gelu_new" if act == "gelu_tanh" else act
        yield "layer_norm_epsilon", shape.epsilon
        return
    yield "max_position_embeddings", shape.context
    yield "num_hidden_layers", shape.depth
    yield "hidden_size", shape.width
    yield "num_attention_heads", shape.heads
    yield "num_key_value_heads", shape.kv_heads
    yield "head_dim", shape.head_dim
    yield "intermediate_size", shape.hidden
    yield "hidden_act", "gelu_pytorch_tanh" if act == "gelu_tanh" else act
    yield "rms_norm_eps", shape.epsilon
    if shape.architecture == "llama":
        yield "attention_bias", shape.output_bias
        yield "mlp_bias", shape.mlp_bias
    else:
        yield "sliding_window", None
    rope = shape.rope
    scaling: dict[str, Any] = {"rope_type": rope.kind}
    if rope.kind != "default":
        scaling["factor"] = rope.factor
    if rope.kind == "llama3":
        scaling["low_freq_factor"], scaling["high_freq_factor"] = rope.low, rope.high
        scaling["original_max_position_embeddings"] = rope.original
    yield "rope_theta", rope.theta
    yield "rope_scaling", None if rope.kind == "default" else scaling
    yield "rope_parameters", {"rope_theta": rope.theta, **scaling}
