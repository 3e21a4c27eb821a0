"""Damaged and hostile checkpoints: refused in one line that names the file, before anything is allocated."""

import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from m7b.errors import DamagedCheckpoint, M7bError, UnsupportedCheckpoint
from m7b.models.text import read_tokenizer
from m7b.runtime.checkpoints import open_checkpoint
from m7b.tokenizer import load_tokenizer, official_file
from m7b.variants import TokenizerVersion
from tests.support.checkpoints import _gguf_name, mistral, native_tensors, write_hf, write_native
from tests.support.four_bit import write_awq, write_gptq, write_mlx
from tests.support.memory import peak_of

MODEL = mistral(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=6,
    vocab_size=8,
    window=4,
)
TENSORS = native_tensors(MODEL)
NAN, INF, HUGE = float("nan"), float("inf"), 10**400


def measured(path: Path) -> int:
    """Open `path` and read all of it; returns the peak of Python's allocations."""

    def read() -> None:
        checkpoint = open_checkpoint(path)
        for name, tensor in checkpoint.tensors.items():
            assert tuple(checkpoint.read(name).shape) == tensor.shape
        if checkpoint.tokenizer:
            load_tokenizer(checkpoint.tokenizer)

    return peak_of(read)


def assert_refused(path: Path, *words: object, kind: type[M7bError] = DamagedCheckpoint) -> str:
    """`path` is refused as `kind`, in one short line with `words`, at no cost in memory."""
    refusals = []

    def read() -> None:
        with pytest.raises(M7bError) as caught:
            open_checkpoint(path)
        refusals.append(caught.value)

    assert peak_of(read) < 4 << 20
    text = str(refusals[0])
    assert type(refusals[0]) is kind, text
    assert text.isprintable()
    assert len(text) < 800
    for word in (path, *words):
        assert str(word) in text
    return text


def hf(folder: Path, tensors: dict | None = None, **config: object) -> Path:
    """A Hugging Face folder of MODEL with `config` changed, `...` for gone, and `tensors` in its place."""
    write_hf(MODEL, folder)
    edit_json(folder / "config.json", **config)
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    return folder


def edit_json(file: Path, **changes: object) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def native_pickle(folder: Path, values: object) -> Path:
    """A native folder whose consolidated.00.pth holds `values`."""
    write_native(MODEL, folder, pickle=True)
    torch.save(values, folder / "consolidated.00.pth")
    return folder


def rezipped(file: Path, compression: int = zipfile.ZIP_STORED, data_pkl: bytes | None = None) -> None:
    """Pack the torch file anew, with other bytes for its pickle."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            changed = data_pkl if data_pkl is not None and name.endswith("data.pkl") else data
            archive.writestr(name, changed, compression)


# ---- GGUF, written by hand so that every count can lie ---------------------------------------------------


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def typed(value: object) -> tuple[int, bytes]:
    """The value type and the bytes of a metadata value; bytes are taken as they are."""
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int():
            return (4, struct.pack("<I", value)) if value >= 0 else (5, struct.pack("<i", value))
        case float():
            return 6, struct.pack("<f", value)
        case str():
            return 8, text(value)
        case list():
            items = [typed(item) for item in value]
            return 9, struct.pack("<IQ", items[0][0], len(items)) + b"".join(data for _, data in items)
    raise TypeError(value)


def pair(key: str | bytes, value: object) -> bytes:
    type_id, data = typed(value)
    return text(key) + struct.pack("<I", type_id) + data


def entry(name: str, dims: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def raw(n_tensors: int, n_pairs: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs) + body


PAIRS = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.block_count": 1,
    "llama.feed_forward_length": 6,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 1e4,
    "llama.vocab_size": 8,
}
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "c", "d", "e", "f", "g"],
    "tokenizer.ggml.token_type": [1] * 8,
    "tokenizer.ggml.scores": [0.0] * 8,
    "tokenizer.ggml.merges": ["a b"],
}


def gguf(file: Path, pairs: dict | None = None, entries: dict | None = None) -> Path:
    """A GGUF file of MODEL with some `pairs` changed, `...` for gone, and (dims, type, offset) by name."""
    kept = {key: value for key, value in (PAIRS | (pairs or {})).items() if value is not ...}
    described, data = {}, b""
    for name, weight in TENSORS.items():
        described[_gguf_name(name)] = (tuple(reversed(weight.shape)), 0, len(data))
        data += weight.numpy().tobytes().ljust(-(-weight.nbytes // 32) * 32, b"\0")
    described |= entries or {}
    head = raw(len(described), len(kept))
    head += b"".join(pair(*item) for item in kept.items())
    head += b"".join(entry(name, *rest) for name, rest in described.items())
    file.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + data)
    return file


@pytest.mark.parametrize(
    ("write", "contents"),
    [(hf, ()), (native_pickle, (TENSORS,)), (gguf, ()), (gguf, (VOCABULARY,))],
)
def test_the_fixtures_are_sound_before_they_are_damaged(tmp_path, write, contents):
    """Otherwise every refusal below could have another cause than the one it names."""
    assert measured(write(tmp_path / "sound", *contents)) < 4 << 20


LIES = {
    "tensor-count": (raw(2**60, 0), [2**60, 24]),
    "pair-count": (raw(0, 2**60), [2**60, 24]),
    "string-length": (raw(0, 1, struct.pack("<QQ", 2**62, 0)), [2**62, 40]),
    "array-length": (raw(0, 1, text("k") + struct.pack("<IIQ", 9, 0, 2**60)), [2**60, 49]),
    "strings-length": (raw(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 2**60)), [2**60, 49]),
    "length-overflow": (raw(0, 1, text("k") + struct.pack("<IIQ", 9, 12, 2**64 - 1)), [49]),
    "value-type": (raw(0, 1, text("k") + struct.pack("<IQ", 99, 0)), ["type 99"]),
    "item-type": (raw(0, 1, text("k") + struct.pack("<IIQ", 9, 99, 0)), ["type 99"]),
    "nested-array": (raw(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 0)), ["type 9"]),
    "n-dims": (raw(1, 0, text("t") + struct.pack("<IQQ", 2**31, 0, 0)), [2**31, "'t'"]),
    "key-not-utf8": (raw(0, 1, text(b"\xff") + struct.pack("<II", 4, 0)), ["UTF-8"]),
    "value-not-utf8": (raw(0, 1, pair("k", "v").replace(b"v", b"\xc0")), ["UTF-8"]),
    "key-twice": (raw(0, 2, pair("k", 1) + pair("k", 2)), ["twice"]),
    "tensor-twice": (raw(2, 0, entry("t", (1,)) * 2), ["twice"]),
    "magic-alone": (b"GGUF", [4]),
}


@pytest.mark.parametrize("lie", LIES)
def test_gguf_header_that_lies_is_refused(tmp_path, lie):
    data, words = LIES[lie]
    (tmp_path / "model.gguf").write_bytes(data)
    assert_refused(tmp_path / "model.gguf", *words)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (0, ["version 0"]),
        (1, ["version 1", "newer file"]),
        (4, ["version 4", "newer m7b"]),
        (3 << 24, ["version 3", "big-endian", "gguf-convert-endian"]),
        (1 << 24, ["version 1", "big-endian"]),
        (2**32 - 1, ["version"]),
    ],
)
def test_gguf_of_another_version_or_byte_order_is_named(tmp_path, version, words):
    (tmp_path / "model.gguf").write_bytes(raw(0, 0, version=version))
    assert_refused(tmp_path / "model.gguf", *words, kind=UnsupportedCheckpoint)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"lmgg" + bytes(60), ["ggml", "fetch the model as GGUF"]),
        (b"fmgg\x01\0\0\0", ["ggmf"]),
        (b"tjgg\x03\0\0\0", ["ggjt"]),
        (b"algg\x01\0\0\0", ["LoRA adapter", "ggla"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["Git LFS pointer", "git lfs pull"]),
        (b"<!DOCTYPE html><html></html>", ["web page"]),
        (b"<html>", ["web page"]),
        (b"", ["not a GGUF file"]),
        (b"PK\3\4", ["not a GGUF file", "folder"]),
    ],
    ids=lambda value: ascii(value[:8]) if isinstance(value, bytes) else "",
)
def test_a_file_that_is_often_taken_for_gguf_is_named(tmp_path, data, words):
    (tmp_path / "model.gguf").write_bytes(data)
    assert_refused(tmp_path / "model.gguf", *words, kind=UnsupportedCheckpoint)


@pytest.mark.parametrize(
    ("pairs", "word"),
    [
        *(({"general.alignment": value}, "general.alignment") for value in (0, 3, -32, 2.0, "8", [8])),
        *(({"llama.block_count": value}, "block_count") for value in (0, -1, True, "1", 1.0, [1], 1025, ...)),
        *(({"llama.embedding_length": value}, "embedding_length") for value in (2**21, "8")),
        *(({"llama.attention.head_count": value}, "head_count") for value in ("2", [2, 2])),
        *(({"llama.attention.head_count_kv": value}, "kv") for value in (3, 0, [1])),
        *(({"llama.attention.key_length": value}, "key_length") for value in (3, "4")),
        *(({"llama.rope.dimension_count": value}, "dimension_count") for value in (2, "4")),
        *(({"llama.rope.freq_base": value}, "freq_base") for value in (NAN, INF, -1.0, 0.0, "1", True)),
        *(({"llama.attention.layer_norm_rms_epsilon": value}, "epsilon") for value in (NAN, 0.0, "1", ...)),
        *(({"llama.attention.sliding_window": value}, "sliding_window") for value in (0, -4, "4", 4.0)),
        *(({"llama.vocab_size": value}, "vocab") for value in ("8", 0, 2**30)),
        *((VOCABULARY | {f"tokenizer.ggml.{key}": 8}, key) for key in ("tokens", "scores", "merges")),
        *(({"tokenizer.ggml.eos_token_id": value}, "eos_token_id") for value in ("2", True, 2.0)),
        (VOCABULARY | {"tokenizer.ggml.add_bos_token": "true"}, "add_bos_token"),
        (VOCABULARY | {"tokenizer.ggml.scores": [0.0] * 7}, "7 scores"),
        (VOCABULARY | {"tokenizer.ggml.token_type": [1] * 9}, "9 types"),
    ],
    ids=lambda value: ascii(list(value.items())[-1]) if isinstance(value, dict) else "",
)
def test_gguf_metadata_out_of_range_or_of_another_type_is_refused(tmp_path, pairs, word):
    assert_refused(gguf(tmp_path / "model.gguf", pairs), word)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", list(range(8))),
        ("tokens", "abcdefgh"),
        ("scores", ["a"] * 8),
        ("token_type", ["a"] * 8),
        ("token_type", [1.0] * 8),
        ("merges", [1, 2]),
        ("merges", ["ab ab"]),
    ],
    ids=lambda value: ascii(value)[:12],
)
def test_gguf_vocabulary_that_cannot_be_is_refused_with_its_file(tmp_path, model, key, value):
    """Found: Hugging Face's tokenizers panics at a merge that makes no token."""
    changes = VOCABULARY | {"tokenizer.ggml.model": model, f"tokenizer.ggml.{key}": value}
    with pytest.raises(M7bError) as caught:
        measured(gguf(tmp_path / "model.gguf", changes))
    assert str(tmp_path / "model.gguf") in str(caught.value)
    assert str(caught.value).isprintable()


def test_tokenizer_json_whose_merge_makes_no_token_is_refused(tmp_path):
    """Found: Hugging Face's tokenizers panics, which is no Exception, and no `except Exception` sees it."""
    folder = hf(tmp_path / "model")
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(M7bError, match=r"tokenizer\.json"):
        measured(folder)


@pytest.mark.parametrize(
    "pairs",
    [
        *({"general.architecture": name} for name in ("qwen2", "gemma3", "mistral4", 5, ["llama"], ...)),
        *({"general.type": kind} for kind in ("adapter", "imatrix", "mmproj")),
        {"llama.expert_count": 8},
        {"llama.rope.scaling.type": "yarn"},
        {"llama.rope.scaling.type": "longrope"},
        {"llama.rope.scaling.attn_factor": 2.0},
        {"llama.attention.temperature_scale": 0.1},
        {"llama.attention.scale": 0.5},
    ],
    ids=lambda pairs: next(iter(pairs)),
)
def test_gguf_models_with_another_forward_pass_are_refused(tmp_path, pairs):
    (key, value), *_ = pairs.items()
    word = {"adapter": "LoRA", "imatrix": "importance", "mmproj": "vision"}.get(str(value), key)
    assert_refused(gguf(tmp_path / "model.gguf", pairs), word, kind=UnsupportedCheckpoint)


@pytest.mark.parametrize(
    ("dims", "type_id", "kind"),
    [((2,), 0, UnsupportedCheckpoint), ((1,), 0, DamagedCheckpoint), ((2,), 1, DamagedCheckpoint)],
)
def test_gguf_factors_of_rope_that_are_not_1_or_do_not_fit_are_refused(tmp_path, dims, type_id, kind):
    """They lie where the embeddings do: numbers other than 1."""
    file = gguf(tmp_path / "model.gguf", entries={"rope_freqs.weight": (dims, type_id, 0)})
    assert_refused(file, "rope_freqs.weight", kind=kind)


@pytest.mark.parametrize(
    ("dims", "type_id", "offset", "words", "kind"),
    [
        ((8,), 999, 0, ["999"], UnsupportedCheckpoint),
        ((8,), 24, 0, ["I8"], UnsupportedCheckpoint),
        ((8,), 8, 0, ["32"], DamagedCheckpoint),
        ((8,), 0, 2**20, ["ends at byte", "of"], DamagedCheckpoint),
        ((8,), 0, 2**64 - 1, ["ends at"], DamagedCheckpoint),
        ((2**40, 2**40), 0, 0, ["ends at"], DamagedCheckpoint),
        ((2**62, 4), 0, 0, ["ends at"], DamagedCheckpoint),
        ((0,), 0, 0, ["8"], DamagedCheckpoint),
        ((8, 0), 0, 0, ["0x8"], DamagedCheckpoint),
        ((), 0, 0, ["()"], DamagedCheckpoint),
        ((9,), 0, 0, ["9", "8"], DamagedCheckpoint),
        ((8, 1, 1, 1, 1), 0, 0, ["5", "4"], DamagedCheckpoint),
    ],
)
def test_gguf_tensor_that_cannot_be_is_refused(tmp_path, dims, type_id, offset, words, kind):
    file = gguf(tmp_path / "model.gguf", entries={"output_norm.weight": (dims, type_id, offset)})
    assert_refused(file, "output_norm.weight", *words, kind=kind)


def test_gguf_tensors_that_share_bytes_are_refused(tmp_path):
    """Otherwise a small file could pass for a model of any size."""
    file = gguf(tmp_path / "model.gguf", entries={"output_norm.weight": ((8,), 0, 0)})
    assert_refused(file, "begins at byte", "inside another tensor")


@pytest.mark.parametrize("key", ["moe", "quantization", "yarn", "llama_4_scaling", "lora", "vision_encoder"])
def test_native_models_with_another_forward_pass_are_refused(tmp_path, key):
    folder = write_native(MODEL, tmp_path / "model", **{key: {"any": 1}})
    assert_refused(folder, "params.json", key, kind=UnsupportedCheckpoint)


# ---- configuration files ---------------------------------------------------------------------------------

INTEGERS = [NAN, INF, -1, 0, HUGE, 2**40, True, "8", 8.0, [], {}]
NUMBERS = [NAN, INF, -1, 0, HUGE, True, "1", []]
REQUIRED = [*INTEGERS, None, ...]
HF_FIELDS = {
    "hidden_size": REQUIRED,
    "num_hidden_layers": REQUIRED,
    "num_attention_heads": REQUIRED,
    "num_key_value_heads": [*INTEGERS, None],
    "head_dim": INTEGERS,
    "intermediate_size": REQUIRED,
    "vocab_size": REQUIRED,
    "max_position_embeddings": REQUIRED,
    "sliding_window": INTEGERS,
    "rms_norm_eps": [*NUMBERS, 2.5, None, ...],
}
NATIVE_FIELDS = {
    "dim": REQUIRED,
    "n_layers": REQUIRED,
    "n_heads": REQUIRED,
    "n_kv_heads": REQUIRED,
    "head_dim": INTEGERS,
    "hidden_dim": REQUIRED,
    "vocab_size": REQUIRED,
    "sliding_window": [*(value for value in INTEGERS if value != "8"), "eight", "0", "9" * 5000],
    "norm_eps": [*NUMBERS, 2.5, None, ...],
    "rope_theta": [*NUMBERS, None],
}


def cases(table: dict) -> list:
    return [
        pytest.param(field, value, id=f"{field}-{ascii(value)[:12]}")
        for field in table
        for value in table[field]
    ]


@pytest.mark.parametrize(("field", "value"), cases(HF_FIELDS))
def test_hf_field_out_of_range_or_of_another_type_is_refused(tmp_path, field, value):
    assert_refused(hf(tmp_path / "model", **{field: value}), "config.json", field)


@pytest.mark.parametrize(("field", "value"), cases({"rope_theta": [*NUMBERS, None]}))
@pytest.mark.parametrize("nested", [False, True])
def test_hf_theta_out_of_range_or_of_another_type_is_refused(tmp_path, field, value, nested):
    rope = {"rope_parameters": {field: value}} if nested else {"rope_parameters": ..., field: value}
    assert_refused(hf(tmp_path / "model", **rope), "config.json", field)


@pytest.mark.parametrize(("field", "value"), cases(NATIVE_FIELDS))
def test_native_field_out_of_range_or_of_another_type_is_refused(tmp_path, field, value):
    folder = write_native(MODEL, tmp_path / "model")
    edit_json(folder / "params.json", **{field: value})
    assert_refused(folder, "params.json", field)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, ["3", "2", "heads"]),
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None}, ["8", "3", "heads"]),
        ({"head_dim": 3}, ["head_dim", "3", "even"]),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_both_figures(tmp_path, changes, words):
    assert_refused(hf(tmp_path / "model", **changes), "config.json", *words)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"5", b"null", b'{"a":', b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000, b'"\n"'],
    ids=lambda data: ascii(data[:8]),
)
def test_json_that_is_no_object_is_refused(tmp_path, name, data):
    folder = hf(tmp_path / "model")
    (folder / name).write_bytes(data)
    assert_refused(folder, name)


@pytest.mark.parametrize("field", ["hidden_size", "model_type", "rope_parameters", "quantization_config"])
def test_json_nested_to_any_depth_is_refused(tmp_path, field):
    """Found: a value that the parser just manages could still be too deep to be shown in the error."""
    folder = hf(tmp_path / "model", **{field: "X"})
    config = (folder / "config.json").read_text()
    for depth in [*range(800, 1000), 5000]:
        (folder / "config.json").write_text(config.replace('"X"', "[" * depth + "]" * depth))
        with pytest.raises((DamagedCheckpoint, UnsupportedCheckpoint), match=r"config\.json"):
            open_checkpoint(folder)


@pytest.mark.parametrize("value", ["2", True, 2.0, [2, "3"], [True], {}])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_eos_that_is_no_id_is_refused(tmp_path, name, value):
    folder = hf(tmp_path / "model")
    edit_json(folder / name, eos_token_id=value)
    if name == "config.json":
        (folder / "generation_config.json").unlink()
    assert_refused(folder, name, "eos_token_id")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("config.json", "model_type"),
        ("config.json", "torch_dtype"),
        ("generation_config.json", "note"),
        ("tokenizer_config.json", "eos_token"),
        ("tokenizer_config.json", "pad_token"),
        ("tokenizer_config.json", "chat_template"),
        ("special_tokens_map.json", "eos_token"),
        ("added_tokens.json", "x"),
    ],
)
def test_half_a_surrogate_pair_is_refused(tmp_path, name, field):
    """Found: a UnicodeEncodeError, where a tokenizer was handed such a token."""
    folder = hf(tmp_path / "model")
    shutil.copyfile(official_file(TokenizerVersion.V1), folder / "tokenizer.model")
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit_json(folder / name, **{field: "\ud800"})
    with pytest.raises((DamagedCheckpoint, UnsupportedCheckpoint), match=re.escape(name)):
        read_all(folder)


def read_all(folder: Path) -> None:
    """Read what a folder says beside its weights."""
    checkpoint = open_checkpoint(folder)
    read_tokenizer(checkpoint)
    assert checkpoint.stop_ids


# ---- folders and their files -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "shard",
    [
        *("../x.{}", "/etc/x.{}", "sub/x.{}", "..\\x.{}", "C:\\x.{}", "model.{}.txt", "..", "link.{}"),
        *("absent.{}", "\ud800.{}"),
        *("", "a" * 300 + ".{}", "é" * 200 + ".{}", "a\0.{}", "a\n\x1b[2J.{}", 5, None, ["model.{}"], {}),
    ],
    ids=lambda shard: ascii(shard)[:16],
)
def test_index_that_names_anything_but_a_file_beside_it_is_refused(tmp_path, kind, shard):
    """Every file that a name could lead to exists and is sound, so nothing but the name is at fault."""
    folder, stem = hf(tmp_path / "model"), {"safetensors": "model", "bin": "pytorch_model"}[kind]
    (folder / "sub").mkdir()
    for place in (tmp_path, folder / "sub"):
        (place / f"x.{kind}").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / f"link.{kind}").symlink_to(tmp_path / f"x.{kind}")
    (folder / f"model.{kind}.txt").write_bytes((folder / "model.safetensors").read_bytes())
    if kind == "bin":
        (folder / "model.safetensors").unlink()
    name = shard.format(kind) if isinstance(shard, str) else shard
    index = {"weight_map": dict.fromkeys(MODEL.state_dict(), name)}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    assert_refused(folder, f"{stem}.{kind}.index.json")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["model.safetensors"]}])
def test_index_without_a_weight_map_is_refused(tmp_path, index):
    folder = hf(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, "model.safetensors.index.json", "weight_map")


# ---- four bits of other programs -------------------------------------------------------------------------

FOUR_BIT_MODEL = mistral(
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
    vocab_size=8,
)
LAYER = "model.layers.0.self_attn.q_proj"
WRITERS = {"gptq": write_gptq, "awq": write_awq, "mlx": write_mlx}


def damage(folder: Path, changes: dict) -> Path:
    """Change tensors of the query's layer: a value, a function of the old one, or `...` for gone."""
    tensors = load_file(folder / "model.safetensors")
    for part, change in changes.items():
        name = f"{LAYER}.{part}"
        old = tensors.pop(name, None)
        if change is not ...:
            tensors[name] = (change(old) if callable(change) else change).contiguous()
    save_file(tensors, folder / "model.safetensors")
    return folder


def change_settings(folder: Path, **changes: object) -> Path:
    """Change the settings of the quantization in config.json, `...` for gone."""
    config = json.loads((folder / "config.json").read_text())
    key = "quantization" if "quantization" in config else "quantization_config"
    settings = {name: value for name, value in (config[key] | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config | {key: settings}))
    return folder


PACKED = ["qweight", "qzeros", "scales"]
OF_MLX = ["weight", "scales", "biases"]
DAMAGES = {
    **{f"{kind}-no-{part}": (kind, {part: ...}, [part]) for kind in ("gptq", "awq") for part in PACKED[1:]},
    **{f"gptq-rows-{part}": ("gptq", {part: lambda old: old[:-1]}, [part]) for part in PACKED},
    **{f"awq-columns-{part}": ("awq", {part: lambda old: old[:, :-1]}, [part]) for part in PACKED},
    **{f"gptq-flat-{part}": ("gptq", {part: lambda old: old.flatten()}, [part]) for part in PACKED},
    **{f"gptq-double-{part}": ("gptq", {part: lambda old: old.double()}, [part]) for part in PACKED},
    **{f"awq-int8-{part}": ("awq", {part: lambda old: old.to(torch.int8)}, [part]) for part in PACKED},
    "gptq-empty": ("gptq", {"qweight": torch.zeros(8, 0, dtype=torch.int32)}, ["qweight"]),
    "awq-empty": ("awq", {"qweight": torch.zeros(0, 8, dtype=torch.int32)}, ["qweight"]),
    "gptq-odd-rows": ("gptq", {"qweight": lambda old: old[:, :-1]}, ["qweight", "63"]),
    "gptq-plain-too": ("gptq", {"weight": torch.zeros(64, 64)}, ["both plain and quantized"]),
    "gptq-bias": ("gptq", {"bias": torch.ones(64)}, ["bias", "more than"]),
    "gptq-short-order": ("gptq", {"g_idx": lambda old: old[:-1]}, ["g_idx"]),
    "gptq-float-order": ("gptq", {"g_idx": lambda old: old.float()}, ["g_idx"]),
    "gptq-negative-order": ("gptq", {"g_idx": lambda old: old - 1}, ["g_idx", "-1"]),
    "gptq-order-past-end": ("gptq", {"g_idx": lambda old: old + 1}, ["g_idx", "to 2", "there are 2"]),
    "gptq-huge-order": ("gptq", {"g_idx": lambda old: old + (1 << 30)}, ["g_idx", 1 << 30]),
    **{f"mlx-no-{part}": ("mlx", {part: ...}, [part]) for part in ("weight", "biases")},
    **{f"mlx-rows-{part}": ("mlx", {part: lambda old: old[:-1]}, [part]) for part in OF_MLX},
    **{f"mlx-columns-{part}": ("mlx", {part: lambda old: old[:, :-1]}, ["groups"]) for part in OF_MLX[:1]},
    **{f"mlx-columns-{part}": ("mlx", {part: lambda old: old[:, :-1]}, [part]) for part in OF_MLX[1:]},
    **{f"mlx-flat-{part}": ("mlx", {part: lambda old: old.flatten()}, [part]) for part in OF_MLX},
    **{f"mlx-int8-{part}": ("mlx", {part: torch.zeros(64, 8, dtype=torch.int8)}, [part]) for part in OF_MLX},
    "mlx-no-scales": ("mlx", {"scales": ..., "biases": ...}, ["64x8"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_four_bit_layers_that_cannot_be_are_refused(tmp_path, name):
    kind, changes, words = DAMAGES[name]
    folder = damage(WRITERS[kind](FOUR_BIT_MODEL, tmp_path / "model").path, changes)
    with pytest.raises((DamagedCheckpoint, UnsupportedCheckpoint)) as caught:
        open_checkpoint(folder)
    text = str(caught.value)
    assert [word for word in (folder, *words) if str(word) not in text] == [], text
    assert text.isprintable()
    assert len(text) < 800


def test_shuffled_columns_without_their_order_are_refused(tmp_path):
    folder = write_gptq(FOUR_BIT_MODEL, tmp_path / "model", shuffled=True, has_order=False).path
    assert_refused(folder, "has no g_idx")


def test_packed_weights_without_settings_are_refused(tmp_path):
    """Found: "7 of 12 tensors are missing; fetch the checkpoint again"."""
    folder = write_gptq(FOUR_BIT_MODEL, tmp_path / "model").path
    edit_json(folder / "config.json", quantization_config=...)
    assert_refused(folder, "config.json", "qweight is quantized, and no file says how")


@pytest.mark.parametrize("value", [NAN, INF, -INF, 60_000.0])
@pytest.mark.parametrize(
    ("kind", "part"), [("gptq", "scales"), ("awq", "scales"), ("mlx", "scales"), ("mlx", "biases")]
)
def test_scales_that_are_not_finite_are_refused_when_they_are_read(tmp_path, kind, part, value):
    """60,000 is finite in float16, and 8 times it is not: an offset of GPTQ or AWQ."""

    def change(old: torch.Tensor) -> torch.Tensor:
        old = old.float()
        old[0, 0] = value
        return old

    folder = WRITERS[kind](FOUR_BIT_MODEL, tmp_path / "model").path
    checkpoint, name = open_checkpoint(damage(folder, {part: change})), "layers.0.attention.wq.weight"
    for read in (checkpoint.read, checkpoint.read_blocks):
        if kind == "mlx" and value == 60_000:
            assert read(name) is not None
        else:
            with pytest.raises(DamagedCheckpoint, match=f"{LAYER}.{part} are not finite"):
                read(name)


@pytest.mark.parametrize("group", [0, -2, 16, 48, 2**40, HUGE, "32", None, True, 32.0, [32], {}, NAN, ...])
@pytest.mark.parametrize("kind", WRITERS)
def test_group_sizes_that_cannot_be_are_refused(tmp_path, kind, group):
    folder = change_settings(WRITERS[kind](FOUR_BIT_MODEL, tmp_path / "model").path, group_size=group)
    assert_refused(folder, "has groups of", kind=UnsupportedCheckpoint)


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_group_size_other_than_that_of_the_scales_is_refused(tmp_path, kind, group):
    folder = WRITERS[kind](FOUR_BIT_MODEL, tmp_path / "model", group=96 - group).path
    change_settings(folder, group_size=group)
    with pytest.raises((UnsupportedCheckpoint, DamagedCheckpoint), match=r"groups|g_idx|qzeros|scales"):
        open_checkpoint(folder)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"bits":', b'{"bits": 4}', b'{"bits": [[[]]]}'])
@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_settings_of_old_folders_that_cannot_be_are_refused(tmp_path, name, data):
    folder = write_gptq(FOUR_BIT_MODEL, tmp_path / "model").path
    edit_json(folder / "config.json", quantization_config=...)
    (folder / name).write_bytes(data)
    with pytest.raises((UnsupportedCheckpoint, DamagedCheckpoint), match=f"{name}|groups of None"):
        open_checkpoint(folder)


@pytest.mark.parametrize("key", ["bits", "group_size", "quant_method", "checkpoint_format"])
def test_settings_nested_to_any_depth_are_refused(tmp_path, key):
    folder = write_gptq(FOUR_BIT_MODEL, tmp_path / "model", **{key: "X"}).path
    config = (folder / "config.json").read_text()
    for depth in [*range(800, 1000), 5000]:
        (folder / "config.json").write_text(config.replace('"X"', "[" * depth + "]" * depth))
        with pytest.raises((DamagedCheckpoint, UnsupportedCheckpoint), match=r"config\.json|groups of"):
            open_checkpoint(folder)


# ---- tensors ---------------------------------------------------------------------------------------------

NORM = "model.layers.0.input_layernorm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("as_pickle", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize(
    ("changes", "words", "kind"),
    [
        ({QUERY: torch.zeros(8, 9)}, [QUERY, "8x9", "8x8"], DamagedCheckpoint),
        ({NORM: torch.zeros(8, 1)}, [NORM, "8x1"], DamagedCheckpoint),
        ({NORM: torch.tensor(1.0)}, [NORM, "scalar"], DamagedCheckpoint),
        ({NORM: ...}, ["layers.0.", "1 of 12"], DamagedCheckpoint),
        ({"lm_head.weight": ...}, ["lm_head.weight"], DamagedCheckpoint),
        ({NORM.replace("weight", "bias"): torch.zeros(8)}, ["input_layernorm.bias", "12"], DamagedCheckpoint),
        ({NORM.replace(".0.", ".1."): torch.zeros(8)}, ["layers.1."], DamagedCheckpoint),
        ({"norm.weight": torch.zeros(8)}, ["norm.weight"], DamagedCheckpoint),
        ({NORM: torch.zeros(8, dtype=torch.int8)}, [NORM], UnsupportedCheckpoint),
        ({NORM: torch.zeros(8, dtype=torch.int64)}, [NORM], UnsupportedCheckpoint),
        ({NORM: torch.zeros(8, dtype=torch.float64)}, [NORM], UnsupportedCheckpoint),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_tensors_that_are_not_those_of_the_configuration_are_refused(
    tmp_path, as_pickle, changes, words, kind
):
    tensors = {k: v for k, v in (MODEL.state_dict() | changes).items() if v is not ...}
    folder = hf(tmp_path / "model", tensors)
    if as_pickle:
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    assert_refused(folder, *words, kind=kind)


def test_native_names_in_a_hugging_face_folder_are_refused(tmp_path):
    """Found: they passed, and their interleaved rows were taken for half-split ones."""
    assert_refused(hf(tmp_path / "model", TENSORS))


def test_canonical_names_in_a_gguf_file_are_refused(tmp_path):
    """Found: they passed, and of two tensors with one canonical name the last one won."""
    file = gguf(tmp_path / "model.gguf", entries={"norm.weight": ((8,), 0, 0)})
    assert_refused(file, "norm.weight")


def test_tensor_in_two_shards_is_refused_with_both_files(tmp_path):
    folder = hf(tmp_path / "model")
    os.rename(folder / "model.safetensors", folder / "a.safetensors")
    save_file({NORM: torch.zeros(8)}, folder / "b.safetensors")
    index = {"weight_map": dict.fromkeys(MODEL.state_dict(), "a.safetensors") | {NORM: "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, NORM, "a.safetensors", "b.safetensors")


@pytest.mark.parametrize(
    ("ranges", "n_bytes"), [([(0, 32), (16, 48)], 48), ([(0, 32), (40, 72)], 72), ([(0, 32), (32, 64)], 65)]
)
def test_safetensors_ranges_that_overlap_or_leave_gaps_are_refused(tmp_path, ranges, n_bytes):
    header = {
        f"t\n{n}": {"dtype": "F32", "shape": [8], "data_offsets": span} for n, span in enumerate(ranges)
    }
    encoded = json.dumps(header).encode()
    folder = hf(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(text(encoded) + bytes(n_bytes))
    assert_refused(folder, "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "consolidated.00.pth", "gguf"])
def test_file_cut_anywhere_is_refused_as_cut(tmp_path, name):
    if name == "gguf":
        path = file = gguf(tmp_path / "model.gguf")
    else:
        native = name.startswith("consolidated")
        path = native_pickle(tmp_path / "m", TENSORS) if native else hf(tmp_path / "m")
        file = path / name
        if name.endswith(".bin"):
            (path / "model.safetensors").unlink()
            torch.save(MODEL.state_dict(), file)
    whole = file.read_bytes()
    for cut in {*range(4, 64), *range(64, len(whole), 97), len(whole) - 1}:
        file.write_bytes(whole[:cut])
        assert "run code" not in assert_refused(path, file.name)


# ---- pickles ---------------------------------------------------------------------------------------------


class Call:
    """Pickled, it is a call that unpickling makes."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple:
        return self.parts


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_pickle_that_would_run_code_does_not(tmp_path, name, zipped, nested):
    folder = native_pickle(tmp_path / "m", {}) if name.startswith("consolidated") else hf(tmp_path / "m")
    (folder / "model.safetensors").unlink(missing_ok=True)
    evil = Call(os.mkdir, str(tmp_path / "proof"))
    values = MODEL.state_dict() | {"evil": evil} if nested else evil
    if zipped:
        torch.save(values, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(values))
    assert ("run code" in assert_refused(folder, name)) == zipped
    assert not (tmp_path / "proof").exists()
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "proof").exists()  # the pickle was live


@pytest.mark.parametrize(
    "values",
    [
        [1],
        7,
        torch.zeros(3),
        {1: torch.zeros(1)},
        {("a", 1): torch.zeros(1)},
        TENSORS | {"step": 3},
        TENSORS | {"nested": TENSORS},
        TENSORS | {"norm.weight": torch.zeros(8).to_sparse()},
        TENSORS | {"norm.weight": torch.zeros(8, device="meta")},
        Call(bytearray, 1 << 46),
        Call(bytearray, 1 << 80),
        Call(bytearray, "text"),
        Call(torch.Size, "text"),
        Call(torch.FloatTensor, 1 << 50),
    ],
    ids=[
        *("list", "number", "tensor", "number-as-name", "tuple-as-name", "number-as-tensor", "nested"),
        *("sparse", "meta", "huge-bytearray", "overflow", "wrong-argument", "wrong-size", "huge-tensor"),
    ],
)
def test_a_pickle_that_is_no_dictionary_of_plain_tensors_is_refused(tmp_path, values):
    assert_refused(native_pickle(tmp_path / "model", values), "consolidated.00.pth")


@pytest.mark.parametrize(
    "data_pkl",
    [
        *(b"", b"\x80\x02.", b"\x80\x02a.", b"\x80\x02J\0.", b"\x80\x02h\x05.", b"\x80\x02](](s."),
        *(b"\x80\x02}]K\x01s.", b"\x80\x02K\x05Q.", b"\x80\x02X\x01\0\0\0\xff."),
        b"\x80\x02X\x07\0\0\0storage\x85Q.",
    ],
    ids=ascii,
)
def test_a_pickle_that_is_nonsense_is_refused(tmp_path, data_pkl):
    folder = native_pickle(tmp_path / "model", TENSORS)
    rezipped(folder / "consolidated.00.pth", data_pkl=data_pkl)
    assert_refused(folder, "consolidated.00.pth")


def test_a_compressed_torch_file_is_refused(tmp_path):
    """Found: torch maps the compressed bytes as if they were weights."""
    folder = native_pickle(tmp_path / "model", TENSORS)
    rezipped(folder / "consolidated.00.pth", zipfile.ZIP_DEFLATED)
    assert_refused(folder, "consolidated.00.pth", "compressed")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    folder = native_pickle(tmp_path / "model", TENSORS)
    rezipped(folder / "consolidated.00.pth", zipfile.ZIP_DEFLATED, data_pkl=bytes(64 << 20))
    assert_refused(folder, "consolidated.00.pth")


# ---- any damage ------------------------------------------------------------------------------------------

EVIL = "a\n\x1b[2J\u2028\x85"


SPOILED = {
    "hf-tensor": lambda path: hf(path / "model", MODEL.state_dict() | {EVIL: torch.zeros(1)}),
    "hf-value": lambda path: hf(path / "model", rope_scaling=EVIL),
    "hf-long-value": lambda path: hf(path / "model", model_type=EVIL * 1000),
    "hf-folder": lambda path: hf(path / EVIL, hidden_size=0),
    "pickle-tensor": lambda path: native_pickle(path / "model", TENSORS | {EVIL: torch.zeros(1)}),
    "pickle-folder": lambda path: native_pickle(path / EVIL, {}),
    "gguf-file": lambda path: gguf(path / EVIL, {"llama.block_count": 0}),
    "gguf-alignment": lambda path: gguf(path / "model.gguf", {"general.alignment": EVIL}),
    "gguf-long-value": lambda path: gguf(path / "model.gguf", {"general.architecture": EVIL * 1000}),
    "gguf-tensor": lambda path: gguf(path / "model.gguf", entries={EVIL: ((1,), 0, 0)}),
    "gguf-long-tensor": lambda path: gguf(path / "model.gguf", entries={EVIL * 1000: ((1,), 99, 0)}),
    "absent": lambda path: path / EVIL,
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_control_characters_in_names_and_values_stay_out_of_the_message(tmp_path, spoiled):
    with pytest.raises(M7bError) as caught:
        open_checkpoint(SPOILED[spoiled](tmp_path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


PATCHES = st.binary(min_size=1, max_size=4) | st.sampled_from(
    [struct.pack("<Q", number) for number in (0, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1)]
)
DAMAGE = st.lists(st.tuples(st.floats(0, 1), PATCHES), min_size=1, max_size=3)
HOSTILE = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def damaged(whole: bytes, damage: list, cut: float) -> bytes:
    data = bytearray(whole)
    for where, patch in damage:
        at = int(where * (len(data) - 1))
        data[at : at + len(patch)] = patch[: len(data) - at]
    return bytes(data[: int(cut * len(data))])


def assert_survived(path: Path) -> None:
    """`path`, whatever its state, opens and reads whole, or is refused as any other."""
    refusal = None
    try:
        assert measured(path) < 8 << 20
    except (DamagedCheckpoint, UnsupportedCheckpoint) as error:
        refusal = str(error)
    assert refusal is None or (refusal.isprintable() and str(path) in refusal)


CUT = st.just(1.0) | st.floats(0, 1)


@HOSTILE
@given(damage=DAMAGE, cut=CUT)
def test_no_damage_to_a_gguf_file_does_more_than_refuse_it(tmp_path, damage, cut):
    file = gguf(tmp_path / "model.gguf", VOCABULARY)
    file.write_bytes(damaged(file.read_bytes(), damage, cut))
    assert_survived(file)


FOLDER_FILES = ["model.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"]


@HOSTILE
@given(name=st.sampled_from(FOLDER_FILES), damage=DAMAGE, cut=CUT)
def test_no_damage_to_a_folder_does_more_than_refuse_it(tmp_path, name, damage, cut):
    folder = tmp_path / "model"
    if not folder.exists():
        index = {"weight_map": dict.fromkeys(MODEL.state_dict(), "model.safetensors")}
        (hf(folder) / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(damaged(whole, damage, cut))
    try:
        assert_survived(folder)
    finally:
        (folder / name).write_bytes(whole)


@HOSTILE
@given(damage=DAMAGE, cut=CUT)
@pytest.mark.filterwarnings("ignore")
def test_no_damage_to_a_pickle_does_more_than_refuse_it(tmp_path, damage, cut):
    """The pickle inside the archive, which a checksum of zip would otherwise guard."""
    folder = native_pickle(tmp_path / "model", TENSORS)
    with zipfile.ZipFile(folder / "consolidated.00.pth") as archive:
        whole = archive.read("consolidated.00/data.pkl")
    rezipped(folder / "consolidated.00.pth", data_pkl=damaged(whole, damage, cut))
    assert_survived(folder)


@pytest.mark.parametrize("value", ["true", 1, [True]])
def test_add_bos_token_that_is_no_truth_value_is_refused(tmp_path, value):
    folder = hf(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": value}))
    assert_refused(folder, "tokenizer_config.json", "add_bos_token")
