"""Checkpoints in the layout of Hugging Face, read into a decoder and written back bit for bit.

A checkpoint is a folder with ``config.json`` and ``model.safetensors``, or several files of
tensors and ``model.safetensors.index.json``, which says where each lies. What this library does
not compute is refused by name, so that logits are the checkpoint's or there are none. Packages
come with ``pip install 'jaxunlearn[lm]'``.
"""

import importlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxunlearn.core.errors import CheckpointError, ConfigError, sentence
from jaxunlearn.core.files import write_text
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import LanguageModel, Variables
from jaxunlearn.engine.sharding import Sharding, spec_of
from jaxunlearn.language.decoder import DecoderShape, build_decoder, nested, number_type
from jaxunlearn.language.huggingface_config import CONFIG, config_of, read_json, shape_of

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# buffers that older files hold beside the parameters: masks and frequencies
_BUFFERS = re.compile(r"(^|\.)(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")
_HEAD = "lm_head.weight"
_PREFIXES = {"gpt2": "transformer.", "llama": "model.", "mistral": "model.", "qwen2": "model."}


class _Stored(NamedTuple):
    """Where a parameter lies in a file.

    Attributes:
      name: of the tensor.
      turned: whether rows and columns change places.
      begin: first column, where several parameters share a tensor.
      columns: of the whole tensor, in its last dimension; 0 where it is not shared.
    """

    name: str
    turned: bool = False
    begin: int = 0
    columns: int = 0


def load_pretrained(
    folder: str | os.PathLike[str],
    *,
    sharding: Sharding | None = None,
    dtype: Any = None,
    context: int | None = None,
    remat: bool = False,
) -> tuple[LanguageModel, Variables]:
    """Reads a checkpoint in the layout of Hugging Face.

    Tensors are read one after the other, and of each only what a device holds.

    Args:
      folder: of the checkpoint.
      sharding: mesh and rules; each device reads its slices. ``None``: all on the first device.
      dtype: of parameters and computation; ``None``: as they are stored, computed in the type
        of the embeddings.
      context: see :func:`shape_of`.
      remat: see :func:`~jaxunlearn.language.decoder.build_decoder`.

    Returns:
      The model, and ``{"params": ...}``.

    Raises:
      ConfigError: another number type than ``float32``, ``bfloat16`` and ``float16``.
      CheckpointError: no checkpoint, one of a model that this library does not compute, tensors
        that are missing, unexpected, damaged or of another shape, a file that is missing.
    """
    folder = Path(os.path.expanduser(folder))
    wanted = None if dtype is None else jnp.dtype(number_type(dtype))
    shape = shape_of(folder, context=context)
    files = _Files(folder)
    places = {path: _under(files, stored) for path, stored in _places(shape).items()}
    _check_tensors(files, shape, places)
    layout = shape.layout()
    values = {
        path: _read_parameter(files, path, places[path], sizes, sharding, wanted)
        for path, (sizes, _) in layout.items()
    }
    model = build_decoder(shape, dtype=values["embed/embedding"].dtype, remat=remat)
    return model, {"params": nested(values)}


class _Files:
    """The files of a checkpoint, opened when a tensor of theirs is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        if (folder / INDEX).is_file():
            homes = read_json(folder / INDEX).get("weight_map")
            if not isinstance(homes, Mapping) or not homes:
                raise CheckpointError(f"{folder / INDEX}: expected a weight_map, got none")
            self.homes = {str(name): str(home) for name, home in homes.items()}
            parts = sorted(set(self.homes.values()))
            missing = [part for part in parts if not (folder / part).is_file()]
            if missing:
                raise CheckpointError(
                    f"{folder}: expected {len(parts)} files of tensors, got none at "
                    f"{_listed(missing)}"
                )
        elif (folder / ONE_FILE).is_file():
            self.homes = {}
            self.homes = dict.fromkeys(self._file(ONE_FILE).keys(), ONE_FILE)
        else:
            others = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
            hint = f" but {_listed(others)}: write it with safetensors" if others else ""
            raise CheckpointError(f"{folder}: expected {ONE_FILE} or {INDEX}, got none{hint}")
        self.names = set(self.homes)
        starts = {name.split(".", 1)[0] + "." for name in self.names}
        self.prefix = next((one for one in _PREFIXES.values() if one in starts), "")

    def _file(self, home: str) -> Any:
        if home not in self._open:
            path = self.folder / home
            try:
                self._open[home] = _safetensors().safe_open(path, framework="np")
            # damaged in one of many ways
            except Exception as error:
                raise CheckpointError(
                    f"{path}: expected a whole file of tensors, got {sentence(error)}"
                ) from error
        return self._open[home]

    def tensor(self, name: str) -> Any:
        """Returns a tensor that reads what it is sliced by."""
        try:
            return self._file(self.homes[name]).get_slice(name)
        except _safetensors().SafetensorError:
            raise CheckpointError(
                f"{self.folder / self.homes[name]}: expected the tensor {name}, got none"
            ) from None

    def whole(self, name: str) -> np.ndarray:
        """Reads a tensor."""
        found: np.ndarray = self._file(self.homes[name]).get_tensor(name)
        return found

    def metadata(self, home: str) -> dict[str, str]:
        return self._file(home).metadata() or {"format": "pt"}


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors")
    except ImportError:
        raise ConfigError(
            "checkpoints need safetensors: run pip install 'jaxunlearn[lm]'"
        ) from None


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _places(shape: DecoderShape) -> dict[str, _Stored]:
    """Returns where each parameter lies, by path; names are those without the base's prefix."""
    return {path: _place(shape, path) for path in shape.layout()}


_GPT2_NAMES = {
    "attention/output": "attn.c_proj",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
}
_ROTARY_NAMES = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
_FUSED = ("attention/query", "attention/key", "attention/value")


def _place(shape: DecoderShape, path: str) -> _Stored:
    if path == "head/kernel":
        return _Stored(_HEAD, turned=True)
    gpt2 = shape.architecture == "gpt2"
    part, leaf = path.rsplit("/", 1)
    end = "bias" if leaf == "bias" else "weight"
    match = re.fullmatch(r"blocks_(\d+)/(.+)", part)
    if match is None:
        outer = {"embed": "wte", "positions": "wpe", "norm": "ln_f"}
        other = {"embed": "embed_tokens", "norm": "norm"}
        return _Stored(f"{(outer if gpt2 else other)[part]}.{end}")
    number, inner = match.groups()
    if not gpt2:
        return _Stored(f"layers.{number}.{_ROTARY_NAMES[inner]}.{end}", turned=leaf == "kernel")
    if inner in _FUSED:
        begin = _FUSED.index(inner) * shape.width
        return _Stored(f"h.{number}.attn.c_attn.{end}", begin=begin, columns=3 * shape.width)
    return _Stored(f"h.{number}.{_GPT2_NAMES[inner]}.{end}")


def _under(files: _Files, stored: _Stored) -> _Stored:
    """Returns the place with the prefix that the file's names have; the base alone has none."""
    if stored.name == _HEAD:
        return stored
    return stored._replace(name=files.prefix + stored.name)


def _stored_sizes(sizes: tuple[int, ...], place: _Stored) -> list[int]:
    sizes = sizes[::-1] if place.turned else sizes
    return [*sizes[:-1], place.columns or sizes[-1]]


def _check_tensors(files: _Files, shape: DecoderShape, places: Mapping[str, _Stored]) -> None:
    expected = {place.name for place in places.values()}
    found = {name for name in files.names if not _BUFFERS.search(name)}
    if shape.tied:
        found.discard(_HEAD)
    kinds = (("missing", expected - found), ("unexpected", found - expected))
    told = [f"{len(names)} {what}: {_listed(sorted(names))}" for what, names in kinds if names]
    if told:
        raise CheckpointError(
            f"{files.folder}: expected the tensors of {shape.architecture} as {CONFIG} has "
            f"it, got {'; '.join(told)}"
        )
    layout = shape.layout()
    for path, place in places.items():
        tensor, sizes = files.tensor(place.name), _stored_sizes(layout[path][0], place)
        if list(tensor.get_shape()) != sizes:
            raise CheckpointError(
                f"{files.folder}: {place.name}: expected {sizes}, got {list(tensor.get_shape())}"
            )
        if tensor.get_dtype() not in _DTYPES:
            raise CheckpointError(
                f"{files.folder}: {place.name}: expected {', '.join(_DTYPES)}, as quantised "
                f"checkpoints are not supported, got {tensor.get_dtype()}"
            )
    if shape.tied and _HEAD in files.names:
        embedding = places["embed/embedding"].name
        if not np.array_equal(files.whole(_HEAD), files.whole(embedding)):
            raise CheckpointError(
                f"{files.folder}: {_HEAD}: expected the embeddings, as tie_word_embeddings says, "
                f"got another tensor"
            )


def _read_parameter(
    files: _Files,
    path: str,
    place: _Stored,
    sizes: tuple[int, ...],
    sharding: Sharding | None,
    dtype: Any,
) -> jax.Array:
    tensor = files.tensor(place.name)
    read: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        ranges = tuple(one.indices(size)[:2] for one, size in zip(index, sizes, strict=True))
        if ranges not in read:  # devices that hold the same read once
            read.clear()
            turned = ranges[::-1] if place.turned else ranges
            *rows, (first, last) = turned
            columns = slice(place.begin + first, place.begin + last)
            try:
                found = tensor[(*(slice(*one) for one in rows), columns)]
            except Exception as error:
                raise CheckpointError(
                    f"{files.folder}: {place.name}: expected a tensor, got {sentence(error)}"
                ) from error
            found = found.T if place.turned else found
            read[ranges] = np.ascontiguousarray(found if dtype is None else found.astype(dtype))
        return read[ranges]

    if sharding is None:
        return jnp.asarray(part((slice(None),) * len(sizes)))
    where = NamedSharding(sharding.mesh, spec_of(f"params/{path}", sizes, sharding))
    return jax.make_array_from_callback(sizes, where, part)


def save_pretrained(
    folder: str | os.PathLike[str],
    model: LanguageModel,
    variables: Variables,
    *,
    like: str | os.PathLike[str] | None = None,
    fields: Mapping[str, Any] | None = None,
    largest: int = 5 * 10**9,
) -> None:
    """Writes a checkpoint in the layout of Hugging Face, with the number types of the parameters.

    Args:
      folder: of the new checkpoint: nothing, or an empty folder.
      model, variables: the decoder.
      like: the checkpoint that the model came from: names of tensors, their files,
        ``config.json`` and whatever else lies there (tokenizers, say) are taken over.
      fields: entries of ``config.json`` besides sizes and kind, ``{"eos_token_id": 2}``;
        they replace those of ``like``.
      largest: bytes of a file of tensors, without ``like``.

    Raises:
      CheckpointError: the folder is in use, or ``like`` holds a model of another shape.
      ConfigError: parameters that are not the model's.
    """
    folder, shape = Path(os.path.expanduser(folder)), model.shape
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: expected a new or an empty folder, got one in use")
    params = named_leaves(variables["params"])
    expected = {path: sizes for path, (sizes, _) in shape.layout().items()}
    got = {path: tuple(leaf.shape) for path, leaf in params.items()}
    wrong = sorted(path for path in {**expected, **got} if expected.get(path) != got.get(path))
    if wrong:
        raise ConfigError(
            f"variables: expected the parameters of the model, got {len(wrong)} others: "
            f"{_listed(wrong)}"
        )
    dtype = jnp.dtype(params["embed/embedding"].dtype).name
    if like is None:
        config, files, index = config_of(shape, dtype), None, {}
    else:
        like = Path(os.path.expanduser(like))
        config, files = read_json(like / CONFIG), _Files(like)
        index = read_json(like / INDEX) if (like / INDEX).is_file() else {}
        if shape_of(like, context=None if shape.rope is None else shape.context) != shape:
            raise CheckpointError(f"{like}: expected the model's shape, got another")
    before = dict(config)
    if config.get("dtype", config.get("torch_dtype", dtype)) != dtype:
        config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    config.update(fields or {})
    _write_tensors(folder, shape, params, files, index, largest)
    if like is not None:
        _copy_others(Path(like), folder)
    # last, since a folder without it is no checkpoint
    if like is not None and config == before:
        shutil.copyfile(Path(like) / CONFIG, folder / CONFIG)
    else:
        write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_tensors(
    folder: Path,
    shape: DecoderShape,
    params: Mapping[str, Any],
    files: _Files | None,
    index: Mapping[str, Any],
    largest: int,
) -> None:
    tensors = _tensors(shape, params, files)
    homes = _divided_files(tensors, largest) if files is None else files.homes
    folder.mkdir(parents=True, exist_ok=True)
    save = importlib.import_module("safetensors.numpy").save_file
    for home in sorted(set(homes.values())):
        part = {name: tensors[name].read() for name in tensors if homes[name] == home}
        metadata = {"format": "pt"} if files is None else files.metadata(home)
        temporary = folder / f".{home}.tmp"
        save(part, temporary, metadata=metadata)
        temporary.replace(folder / home)
    if set(homes.values()) != {ONE_FILE}:
        told = {"total_parameters": sum(one.size for one in tensors.values())}
        told = dict(index.get("metadata", told))
        told["total_size"] = sum(one.nbytes for one in tensors.values())
        found = {"metadata": told, "weight_map": homes}
        write_text(folder / INDEX, json.dumps(found, indent=2, sort_keys=True) + "\n")


class _Tensor(NamedTuple):
    """A tensor to be written: parts side by side in the last dimension, turned if they are."""

    parts: list[Any]
    turned: bool

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.size * part.dtype.itemsize for part in self.parts)

    def read(self) -> np.ndarray:
        """Brings the tensor to the host."""
        read = [np.asarray(part) for part in self.parts]
        found = np.concatenate(read, axis=-1) if len(read) > 1 else read[0]
        return np.asarray(found.T if self.turned else found, order="C")


def _tensors(
    shape: DecoderShape, params: Mapping[str, Any], files: _Files | None
) -> dict[str, _Tensor]:
    found: dict[str, _Tensor] = {}
    for path, stored in _places(shape).items():
        if files is not None:
            stored = _under(files, stored)
        elif stored.name != _HEAD:
            stored = stored._replace(name=_PREFIXES[shape.architecture] + stored.name)
        # the parts of a shared tensor come in its order
        found.setdefault(stored.name, _Tensor([], stored.turned)).parts.append(params[path])
    for name in sorted(files.names - set(found)) if files is not None else ():
        assert files is not None
        kept = params["embed/embedding"] if name == _HEAD else files.whole(name)
        found[name] = _Tensor([kept], False)
    return found


def _divided_files(tensors: Mapping[str, _Tensor], largest: int) -> dict[str, str]:
    """Divides tensors over files of at most ``largest`` bytes, in their order."""
    numbers, number, filled = {}, 0, 0
    for name, tensor in tensors.items():
        if filled and filled + tensor.nbytes > largest:
            number, filled = number + 1, 0
        filled += tensor.nbytes
        numbers[name] = number
    if number == 0:
        return dict.fromkeys(tensors, ONE_FILE)
    return {
        name: f"model-{one + 1:05d}-of-{number + 1:05d}.safetensors"
        for name, one in numbers.items()
    }


def _copy_others(source: Path, folder: Path) -> None:
    """Copies what lies in a checkpoint besides tensors and configuration: tokenizers, licences."""
    weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
    for path in sorted(source.iterdir()):
        other = path.suffix in weights or path.name in (CONFIG, INDEX) or path.name[0] == "."
        if path.is_file() and not other:
            shutil.copyfile(path, folder / path.name)
