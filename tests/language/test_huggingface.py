"""Checkpoints in the layout of Hugging Face: logits, bits, slices, and what is refused by name."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxunlearn.core.errors import CheckpointError, ConfigError
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.engine.sharding import make_sharding
from jaxunlearn.language import huggingface
from jaxunlearn.language.decoder import Rope, build_decoder, gpt2
from jaxunlearn.language.huggingface import load_pretrained, save_pretrained
from jaxunlearn.language.huggingface_config import shape_of

GOLDEN = Path(__file__).parent.parent / "golden" / "lm"
NAMES = ("gpt2", "llama", "mistral", "qwen2")


def copy(tmp_path, name, **changes):
    """A checkpoint with another configuration; ``None`` as a value removes the entry."""
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same(one, two):
    one, two = named_leaves(one), named_leaves(two)
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        assert leaf.dtype == two[name].dtype, name
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(two[name]), err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    model, variables = load_pretrained(GOLDEN / name, dtype="float32")
    x = {"tokens": jnp.asarray(golden["tokens"]), "mask": jnp.asarray(golden["mask"])}
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(jax.jit(model.apply)(variables, x))
    gap = np.abs(logits - golden["logits"])[golden["mask"]]
    assert gap.max() < 1e-5
    # as stored: bfloat16 for one of them, computed in it
    model, variables = load_pretrained(GOLDEN / name)
    stored = "bfloat16" if name == "mistral" else "float32"
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {stored}
    gap = np.abs(np.asarray(jax.jit(model.apply)(variables, x)) - golden["logits"])
    assert gap[golden["mask"]].mean() < (0.02 if name == "mistral" else 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_the_file_that_was_read(name, tmp_path):
    source = GOLDEN / name
    model, variables = load_pretrained(source)
    save_pretrained(tmp_path / "like", model, variables, like=source)
    files = sorted(path.name for path in source.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "like").iterdir())
    for file in files:
        assert (tmp_path / "like" / file).read_bytes() == (source / file).read_bytes(), file
    # without the original: the same tensors, by our own configuration, in small files
    largest = 20_000 if name == "qwen2" else 10**9
    fields = {"eos_token_id": 1}
    save_pretrained(tmp_path / "own", model, variables, fields=fields, largest=largest)
    again, found = load_pretrained(tmp_path / "own")
    assert again is model
    same(found, variables)
    assert json.loads((tmp_path / "own" / "config.json").read_text())["eos_token_id"] == 1
    whole = {}
    for path in (tmp_path / "own").glob("*.safetensors"):
        assert path.stat().st_size < largest + 2000
        whole |= load_file(path)
    parts = [load_file(path) for path in source.glob("*.safetensors")]
    assert whole.keys() == {key for part in parts for key in part}


def test_each_device_reads_its_slice(monkeypatch):
    model, variables = load_pretrained(GOLDEN / "llama")
    _, other = load_pretrained(GOLDEN / "gpt2")
    read = []

    class Counted:
        def __init__(self, tensor):
            self.tensor = tensor

        def __getattr__(self, name):
            return getattr(self.tensor, name)

        def __getitem__(self, index):
            found = self.tensor[index]
            read.append(found.size)
            return found

    plain = huggingface._Files.tensor
    monkeypatch.setattr(huggingface._Files, "tensor", lambda self, name: Counted(plain(self, name)))
    for name, whole in (("llama", variables), ("gpt2", other)):
        read.clear()
        sharding = make_sharding("fsdp")
        _, sharded = load_pretrained(GOLDEN / name, sharding=sharding)
        same(sharded, whole)
        leaves = named_leaves(sharded)
        kernel = leaves["params/blocks_0/attention/output/kernel"]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {
            (kernel.shape[0], kernel.shape[1] // 8)
        }
        # no number is read twice, though eight devices hold what does not divide
        assert sum(read) == sum(leaf.size for leaf in leaves.values())
        assert max(read) < max(leaf.size for leaf in leaves.values()) or name == "gpt2"
    rules = ((r"(query|key|value)/kernel$", ("data", "model")),)
    sharding = make_sharding("data=2,model=4", rules)
    _, sharded = load_pretrained(GOLDEN / "gpt2", sharding=sharding, dtype="bfloat16")
    kernel = sharded["params"]["blocks_1"]["attention"]["value"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(16, 8)}
    same(sharded, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), other))
    assert model.shape.architecture == "llama"


def test_both_spellings_of_rotations_are_read(tmp_path):
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    wanted = Rope(5e5, "llama3", 8.0, 1.0, 4.0, 32)
    new = {"rope_theta": 5e5, "rope_type": "llama3", **scaled}
    new["original_max_position_embeddings"] = 32
    old = {key: value for key, value in new.items() if key != "rope_theta"}
    for number, changes in enumerate(
        (
            {"rope_parameters": new},
            {"rope_parameters": "absent", "rope_theta": 5e5, "rope_scaling": old},
            {
                "rope_parameters": "absent",
                "rope_theta": 5e5,
                "rope_scaling": {"type": "llama3", **scaled},
                "original_max_position_embeddings": 32,
            },
        )
    ):
        assert shape_of(copy(tmp_path / str(number), "llama", **changes)).rope == wanted
    plain = {"rope_parameters": "absent", "rope_theta": 1e6, "rope_scaling": None}
    assert shape_of(copy(tmp_path, "llama", **plain)).rope == Rope(1e6)
    plain = {"rope_parameters": "absent", "num_key_value_heads": "absent", "head_dim": "absent"}
    shape = shape_of(copy(tmp_path / "first", "llama", **plain))
    assert (shape.rope, shape.kv_heads, shape.head_dim) == (Rope(10000.0), 4, 8)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "mamba"}, "model_type: expected one of gpt2, .* got 'mamba'"),
        ("llama", {"model_type": "absent"}, "model_type: expected one of .* got None"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type: .* got 'yarn'"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_type: .* got 'dynamic'"),
        ("mistral", {"rope_scaling": {"type": "longrope"}}, "rope_type: .* got 'longrope'"),
        ("mistral", {"rope_scaling": {"type": "linear"}}, "factor: expected a positive number"),
        ("qwen2", {"rope_parameters": {"full_attention": {}}}, "one rotation for all blocks"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.* got 0.5"),
        ("mistral", {"sliding_window": 16}, "sliding_window: expected at least the context of 40"),
        ("mistral", {"sliding_window": "absent", "max_position_embeddings": 5000}, "got 4096"),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}
            | {"layer_types": None},
            "sliding_window: .* got 8",
        ),
        ("qwen2", {"layer_types": ["chunked_attention"]}, "layer_types: .* got 'chunked_att"),
        ("llama", {"hidden_act": "quick_gelu"}, "hidden_act: expected one of silu"),
        ("gpt2", {"activation_function": "mish"}, "activation_function: expected one of"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: expected None"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights: expected True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention: expected False"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: expected None"),
        ("mistral", {"attention_bias": True}, "attention_bias: expected False for mistral"),
        ("qwen2", {"mlp_bias": True}, "mlp_bias: expected False for qwen2"),
        ("llama", {"hidden_size": "absent"}, "hidden_size: expected a positive integer, got None"),
        ("qwen2", {"num_key_value_heads": "absent"}, "num_key_value_heads: expected a positive"),
        ("llama", {"num_key_value_heads": 3}, "kv_heads: expected a divisor of 4, got 3"),
        ("gpt2", {"n_head": 5}, "n_head: expected a divisor of the width 32, got 5"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps: expected a positive number"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false"),
        ("llama", {"vocab_size": 98}, "embed_tokens.weight: expected .98, 32., got .97, 32."),
        ("llama", {"intermediate_size": 57}, "mlp.gate_proj.*weight: expected .57, 32., got .56"),
        ("llama", {"attention_bias": False}, "got 8 unexpected: .* and 5 more"),
        ("llama", {"tie_word_embeddings": False}, "got 1 missing: lm_head.weight"),
        (
            "llama",
            {"num_hidden_layers": 3, "attention_bias": False},
            r"got 12 missing: .* and 9 more; 8 unexpected: .* and 5 more",
        ),
        ("qwen2", {"num_hidden_layers": 3}, "got 12 missing: model.layers.2.* and 9 more"),
        ("gpt2", {"n_layer": 1}, "got 12 unexpected: transformer.h.1.* and 9 more"),
        ("gpt2", {"n_positions": 41}, "wpe.weight: expected .41, 32., got .40, 32."),
    ],
)
def test_another_computation_is_refused_by_name(name, changes, message, tmp_path):
    folder = copy(tmp_path, name, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) - len(str(folder)) < 350


def test_a_window_does_not_matter_to_shorter_texts(tmp_path):
    folder = copy(tmp_path, "mistral", sliding_window=16)
    model, variables = load_pretrained(folder, context=16)
    assert model.shape.context == 16
    save_pretrained(tmp_path / "saved", model, variables, like=folder)
    assert (tmp_path / "saved" / "config.json").read_bytes() == (
        folder / "config.json"
    ).read_bytes()
    for context in (0, 41, 2.5):
        with pytest.raises(CheckpointError, match="context: expected 1 to 40 tokens"):
            shape_of(folder, context=context)
    with pytest.raises(CheckpointError, match="context: expected 40, as GPT-2 learned"):
        shape_of(GOLDEN / "gpt2", context=16)


def edited(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_older_files_of_gpt2_are_read_and_written_back(tmp_path):
    """Names without the base's prefix, masks beside the parameters, a copy of the embeddings."""
    folder = copy(tmp_path, "gpt2")

    def older(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 40, 40), np.float32))
        tensors["h.1.attn.masked_bias"] = np.asarray(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()

    edited(folder, older)
    model, variables = load_pretrained(folder)
    same(variables, load_pretrained(GOLDEN / "gpt2")[1])
    save_pretrained(tmp_path / "saved", model, variables, like=folder)
    one, two = (load_file(at / "model.safetensors") for at in (folder, tmp_path / "saved"))
    assert one.keys() == two.keys()
    assert all(
        np.array_equal(one[key], two[key]) and one[key].shape == two[key].shape for key in one
    )

    edited(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["wpe.weight"]}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight: expected the embeddings, as tie"):
        load_pretrained(folder)


def quantised(tensors):
    tensors["lm_head.weight"] = np.zeros((97, 32), np.int8)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "llama",
            lambda at: (at / "model-00002-of-00004.safetensors").unlink(),
            "4 files of .*2-of",
        ),
        ("gpt2", lambda at: (at / "model.safetensors").unlink(), "expected model.safetensors or"),
        ("gpt2", lambda at: (at / "config.json").unlink(), "with config.json, got none"),
        ("gpt2", lambda at: (at / "config.json").write_text("{"), "config.json: expected JSON"),
        ("gpt2", lambda at: (at / "config.json").write_text("[1]"), "expected a mapping"),
        ("qwen2", lambda at: edited(at, quantised), "lm_head.weight: expected F32, F16, BF16"),
        (
            "qwen2",
            lambda at: edited(at, lambda found: found.pop("model.norm.weight")),
            "got 1 missing: model.norm.weight",
        ),
        (
            "llama",
            lambda at: (at / "model.safetensors.index.json").write_text('{"weight_map": {}}'),
            "expected a weight_map, got none",
        ),
        (
            "llama",
            lambda at: shutil.copy(
                at / "model-00001-of-00004.safetensors", at / "model-00003-of-00004.safetensors"
            ),
            "3-of-00004.safetensors: expected the tensor .*, got none",
        ),
        (
            "gpt2",
            lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"),
            "got none but pytorch_model.bin",
        ),
    ],
)
def test_damaged_checkpoints_are_refused(name, change, message, tmp_path):
    folder = copy(tmp_path, name)
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_refused(tmp_path):
    for size in (3, 500, 50_000):
        folder = copy(tmp_path / str(size), "gpt2")
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="expected a whole file of tensors"):
            load_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint with config.json"):
        load_pretrained(tmp_path / "nowhere")


def test_saving_in_another_number_type_tells_the_configuration(tmp_path):
    model, variables = load_pretrained(GOLDEN / "mistral", dtype="float32")
    save_pretrained(tmp_path / "whole", model, variables, like=GOLDEN / "mistral")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["torch_dtype"] == "float32"
    same(load_pretrained(tmp_path / "whole")[1], variables)
    # values that bfloat16 holds come home to it
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    save_pretrained(tmp_path / "half", model, half, like=GOLDEN / "mistral")
    path = Path("model.safetensors")
    assert (tmp_path / "half" / path).read_bytes() == (GOLDEN / "mistral" / path).read_bytes()


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    model, variables = load_pretrained(GOLDEN / "gpt2")
    for wrong, count in (
        ({"params": {**variables["params"], "extra": jnp.ones(2)}}, "1 others: extra"),
        (load_pretrained(GOLDEN / "qwen2")[1], "others: "),
    ):
        with pytest.raises(ConfigError, match=f"parameters of the model, got .*{count}"):
            save_pretrained(tmp_path / "new", model, wrong)
    with pytest.raises(CheckpointError, match="expected the model's shape, got another"):
        save_pretrained(tmp_path / "new", model, variables, like=GOLDEN / "qwen2")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(CheckpointError, match="expected a new or an empty folder"):
            save_pretrained(folder, model, variables)


def test_another_number_type_is_refused():
    for dtype in ("int8", "float64", "int4x"):
        with pytest.raises(ConfigError, match="dtype: expected one of float32, bfloat16, float16"):
            load_pretrained(GOLDEN / "gpt2", dtype=dtype)


def test_a_network_trained_here_is_saved_and_read(tmp_path):
    model = gpt2((), 50, width=16, heads=2, depth=1, context=12, tied=False)
    variables = model.init(jax.random.key(0))
    save_pretrained(tmp_path / "new", model, variables)
    again, found = load_pretrained(tmp_path / "new")
    assert again is model is build_decoder(shape_of(tmp_path / "new"))
    same(found, variables)
