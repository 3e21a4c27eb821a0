"""What is read from sound checkpoints of every format, and how much memory it takes."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import psutil
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType, quants

from m7b.errors import (
    CheckpointNotFound,
    DamagedCheckpoint,
    OutOfResources,
    UnsupportedCheckpoint,
    UsageError,
)
from m7b.runtime.checkpoints import Format, gguf_header, hf, native, open_checkpoint
from m7b.runtime.checkpoints.fields import Fields
from m7b.runtime.checkpoints.gguf import _TYPES, _lost_window, _rare_type
from m7b.runtime.loader import EngineOptions, load_engine
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.rope import interleaved_to_half_split
from m7b.runtime.placement import plan_devices
from m7b.variants import VARIANTS
from tests.support.checkpoints import (
    engine,
    logits,
    mistral,
    native_tensors,
    write_gguf,
    write_hf,
    write_native,
)

MODEL = mistral(window=4)
OTHER = mistral(window=4, seed=1)
IDS = list(range(1, 40))
CONFIG = ModelConfig(
    dim=32,
    n_layers=2,
    n_heads=8,
    n_kv_heads=2,
    head_dim=4,
    hidden_dim=48,
    vocab_size=64,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=4,
    max_seq_len=4096,
    tied_embeddings=False,
)


def half_split_rows(n_rows: int, n_heads: int) -> list[int]:
    """The native row of each canonical row: pair i of a head, rows 2i and 2i+1, goes to i and i + D/2."""
    half = n_rows // n_heads // 2
    return [2 * (head * half + i) + part for head in range(n_heads) for part in (0, 1) for i in range(half)]


def canonical(model) -> dict[str, torch.Tensor]:
    """The weights as every format must give them: native names, and transformers' own rows."""
    state = model.state_dict()
    tensors = native_tensors(model)
    for name in tensors:
        for ours, theirs in (("attention.wq", "self_attn.q_proj"), ("attention.wk", "self_attn.k_proj")):
            if ours in name:
                tensors[name] = state["model." + name.replace(ours, theirs)]
    return tensors


def assert_holds(path: Path, format_: Format, n_files: int = 1) -> None:
    """`path` opens as `format_` and every one of its tensors is that of MODEL, to the bit."""
    checkpoint, expected = open_checkpoint(path), canonical(MODEL)
    assert checkpoint.format == format_
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) == n_files
    max_seq_len = 32768 if format_ == Format.NATIVE else 4096  # params.json does not say
    assert checkpoint.config == dataclasses.replace(CONFIG, max_seq_len=max_seq_len)
    assert checkpoint.tensors.keys() == expected.keys()
    assert checkpoint.n_bytes == sum(weight.nbytes for weight in expected.values())
    for name, weight in expected.items():
        assert torch.equal(checkpoint.read(name), weight), name


def write_bin(model, folder: Path, shards: int = 1) -> Path:
    """The older Hugging Face layout: pytorch_model.bin, or numbered parts and an index."""
    model.config.save_pretrained(folder)
    items = list(model.state_dict().items())
    if shards == 1:
        torch.save(dict(items), folder / "pytorch_model.bin")
        return folder
    names = [f"pytorch_model-{n:05}-of-{shards:05}.bin" for n in range(1, shards + 1)]
    for n, name in enumerate(names):
        torch.save(dict(items[n::shards]), folder / name)
    weight_map = {key: names[n % shards] for n, (key, _) in enumerate(items)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_cached(model, folder: Path) -> Path:
    """As huggingface_hub caches it: every file is a link into a folder of blobs."""
    snapshot, blobs = folder / "snapshots" / "rev", folder / "blobs"
    write_hf(model, snapshot, max_shard_size="20KB")
    blobs.mkdir()
    for n, file in enumerate(sorted(snapshot.iterdir())):
        shutil.move(file, blobs / f"{n:064x}")
        file.symlink_to(Path("..", "..", "blobs", f"{n:064x}"))
    return snapshot


# ---- which format, which files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "write", "format_", "n_files"),
    [
        ("params.json", write_hf, Format.HF, 1),
        ("model.gguf", write_native, Format.NATIVE, 1),
        ("model.bin", write_gguf, Format.GGUF, 1),
        ("consolidated.safetensors", write_gguf, Format.GGUF, 1),
        ("shards", lambda model, path: write_hf(model, path, max_shard_size="20KB"), Format.HF, 5),
        ("bin", write_bin, Format.HF, 1),
        ("bins", lambda model, path: write_bin(model, path, shards=3), Format.HF, 3),
        ("cached", write_cached, Format.HF, 5),
        ("pth", lambda model, path: write_native(model, path, pickle=True), Format.NATIVE, 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_layout_is_told_by_content_and_gives_the_same_tensors(tmp_path, name, write, format_, n_files):
    assert_holds(write(MODEL, tmp_path / name), format_, n_files)


def test_the_one_gguf_file_of_a_folder_is_found_whatever_its_name(tmp_path):
    write_gguf(MODEL, tmp_path / "weights.bin")
    (tmp_path / "notes.gguf").write_text("not GGUF at all")
    assert_holds(tmp_path, Format.GGUF)


def test_hf_is_preferred_to_native_and_exactly_one_is_read(tmp_path):
    folder = tmp_path / "both"
    write_native(OTHER, write_hf(MODEL, folder))
    write_gguf(OTHER, folder / "model.gguf")
    assert_holds(folder, Format.HF)


@pytest.mark.parametrize(
    ("write", "other", "n_files"),
    [
        (write_hf, "pytorch_model.bin", 1),
        (lambda model, path: write_hf(model, path, max_shard_size="20KB"), "model.safetensors", 5),
        (lambda model, path: write_bin(model, path, shards=2), "pytorch_model.bin", 2),
    ],
    ids=["safetensors-before-bin", "index-before-lone-safetensors", "index-before-lone-bin"],
)
def test_a_folder_with_two_sets_of_weights_loads_one(tmp_path, write, other, n_files):
    folder = write(MODEL, tmp_path / "model")
    write_bin(OTHER, write_hf(OTHER, tmp_path / "other"))
    shutil.copy(tmp_path / "other" / other, folder)
    assert_holds(folder, Format.HF, n_files)


def test_native_safetensors_is_preferred_to_pth(tmp_path):
    write_native(OTHER, tmp_path, pickle=True)
    assert_holds(write_native(MODEL, tmp_path), Format.NATIVE)


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path):
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        write_gguf(MODEL, tmp_path / "two" / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGML" + bytes(64))
    write_hf(MODEL, tmp_path / "bare")
    (tmp_path / "bare" / "config.json").unlink()
    cases = {
        "two": "2 GGUF files",
        "empty": "no checkpoint",
        "model.gguf": "not a GGUF file",
        "bare": "config.json",
    }
    for name, words in cases.items():
        with pytest.raises(UnsupportedCheckpoint, match=words) as caught:
            open_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(CheckpointNotFound, match="absent"):
        open_checkpoint(tmp_path / "absent")


# ---- configuration ---------------------------------------------------------------------------------------

SHAPE = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
V01 = SHAPE | {"vocab_size": 32000, "rope_theta": 10000.0, "sliding_window": 4096}
V02 = SHAPE | {"vocab_size": 32000, "rope_theta": 1000000.0, "sliding_window": None, "attention_dropout": 0.0}
V03 = V02 | {"vocab_size": 32768}
PARAMS = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
}
PARAMS_V01 = PARAMS | {"sliding_window": 4096, "vocab_size": 32000}
PARAMS_V03 = PARAMS | {"vocab_size": 32768, "rope_theta": 1000000.0}


def hf_config(values: dict, **options) -> ModelConfig:
    """The configuration of a config.json with `values`, those that are `...` left out."""
    kept = {key: value for key, value in values.items() if value is not ...}
    return hf._config(Fields(Path("config.json"), kept), **({"tied": False, "window_given": False} | options))


def native_config(values: dict) -> ModelConfig:
    kept = {key: value for key, value in values.items() if value is not ...}
    return native._config(Fields(Path("params.json"), kept), tied=False)


@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("base-v0.1", hf_config(V01)),
        ("instruct-v0.1", hf_config(V01)),
        ("instruct-v0.2", hf_config(V02)),
        ("base-v0.3", hf_config(V03)),
        ("instruct-v0.3", hf_config(V03)),
        ("base-v0.1", native_config(PARAMS_V01)),
        ("instruct-v0.3", native_config(PARAMS_V03)),
    ],
)
def test_published_configurations_parse_to_their_variant(variant, config):
    assert config == ModelConfig.of_variant(VARIANTS[variant])


@pytest.mark.parametrize(
    ("variant", "n_params"), [("base-v0.1", 7_241_732_096), ("instruct-v0.3", 7_248_023_552)]
)
def test_parameters_and_tensors_of_mistral_7b_count_as_published(variant, n_params):
    config = ModelConfig.of_variant(VARIANTS[variant])
    shapes = config.tensor_shapes()
    assert config.n_params == sum(map(math.prod, shapes.values())) == n_params
    assert len(shapes) == 291


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({}, 1e4),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": 1000000}, 1e6),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_theta": ..., "rope_parameters": {"rope_theta": 5e5}}, 5e5),
        ({"rope_theta": ..., "rope_parameters": None, "sliding_window": 4096}, 1e4),
        ({"rope_theta": ..., "sliding_window": None}, None),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default"}}, 1e4),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default"}, "sliding_window": None}, 1e4),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, 5e5),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 1.0}}, 5e5),
        ({"rope_theta": None}, None),
    ],
)
def test_hf_theta_is_stated_or_that_of_the_first_release_or_refused(changes, theta):
    if theta is None:
        with pytest.raises(DamagedCheckpoint, match="rope_theta"):
            hf_config(V01 | changes)
    else:
        assert hf_config(V01 | changes).rope_theta == theta


@pytest.mark.parametrize(
    ("changes", "window_given", "window"),
    [
        ({"sliding_window": 4096}, False, 4096),
        ({"sliding_window": None}, False, None),
        ({"sliding_window": ...}, False, "refused"),
        ({"sliding_window": ...}, True, None),
        ({"sliding_window": ..., "model_type": "llama"}, False, None),
    ],
)
def test_hf_window_absent_is_not_null(changes, window_given, window):
    if window == "refused":
        with pytest.raises(DamagedCheckpoint, match="sliding_window is missing"):
            hf_config(V01 | changes, window_given=window_given)
    else:
        assert hf_config(V01 | changes, window_given=window_given).sliding_window == window


@pytest.mark.parametrize(
    ("changes", "window", "theta"),
    [
        ({}, None, 1e6),
        ({"sliding_window": None}, None, 1e6),
        ({"sliding_window": 4096}, 4096, 1e4),
        ({"sliding_window": "4096"}, 4096, 1e4),
        ({"_sliding_window": 4096}, 4096, 1e4),
        ({"sliding_window": 4096, "rope_theta": 1e6}, 4096, 1e6),
        ({"rope_theta": 1e4}, None, 1e4),
    ],
)
def test_native_window_and_theta_follow_the_release_where_the_file_is_silent(changes, window, theta):
    config = native_config(PARAMS_V03 | {"rope_theta": ...} | changes)
    assert (config.sliding_window, config.rope_theta) == (window, theta)


def test_a_llama_model_is_accepted_and_has_no_window(tmp_path):
    """Whatever its file says: transformers' Llama has none either."""
    folder = write_hf(MODEL, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama", "sliding_window": 4}))
    assert open_checkpoint(folder).config.sliding_window is None


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, {2}), ({}, {2}), ({"eos_token_id": None}, {2}), ({"eos_token_id": [5, 7]}, {2, 5, 7})],
)
def test_stop_ids_are_those_of_config_and_generation_config(tmp_path, generation, expected):
    """What generation_config.json said hid what config.json did."""
    folder = write_hf(MODEL, tmp_path)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert open_checkpoint(folder).stop_ids == expected


@pytest.mark.parametrize("eos", [None, ...], ids=["null", "missing"])
def test_a_folder_need_not_name_the_id_that_ends_a_text(tmp_path, eos):
    """It was refused, though the tokenizer or the template may name one."""
    folder = write_hf(MODEL, tmp_path)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": eos}
    kept = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    assert open_checkpoint(folder).stop_ids == frozenset()


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mixtral"},
        {"model_type": ...},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_scaling": {"type": "longrope", "factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
        {"partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "default"}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_hf_models_with_another_forward_pass_are_refused(changes):
    with pytest.raises(UnsupportedCheckpoint, match=next(iter(changes))):
        hf_config(V01 | changes)


def test_interleaved_rows_become_half_split_rows():
    """The docstring's worked example, the formula of spec 2.2, and the inverse of its HF to native."""
    rows = torch.arange(6.0)[:, None]
    assert interleaved_to_half_split(rows, 1).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    weight = torch.randn(8 * 6, 5)
    canonical = interleaved_to_half_split(weight, 8)
    assert torch.equal(canonical, weight[half_split_rows(48, 8)])
    assert torch.equal(canonical.view(8, 2, 3, 5).swapaxes(1, 2).reshape(48, 5), weight)


# ---- GGUF ------------------------------------------------------------------------------------------------


def random_blocks(shape: tuple[int, ...], type_: Type) -> np.ndarray:
    """Bytes of a K-quant, which the gguf package cannot make: random but for its float16 scales."""
    n_values, n_bytes = gguf.GGML_QUANT_SIZES[type_]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (math.prod(shape) // n_values, n_bytes), dtype=np.uint8)
    for start in (208,) if type_ == Type.Q6_K else (0, 2):  # d; d and dmin
        scale = rng.uniform(-0.01, 0.01, len(blocks)).astype(np.float16)
        blocks[:, start : start + 2] = scale[:, None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def write_typed_gguf(model, file: Path, type_: Type) -> dict[str, np.ndarray]:
    """A GGUF file with matrices of `type_`; returns what they hold by canonical name, rows as stored."""
    reader = gguf.GGUFReader(write_gguf(model, file.with_suffix(".f32")))
    writer = gguf.GGUFWriter(file, "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(name, field.contents(), field.types[0])
    held = {}
    for tensor, name in zip(reader.tensors, native_tensors(model), strict=True):
        data, stored_as = tensor.data, Type.F32
        if data.ndim == 2:
            stored_as = type_
            data = random_blocks(data.shape, type_) if "K" in type_.name else quants.quantize(data, type_)
        held[name] = np.array(quants.dequantize(data, stored_as))
        writer.add_tensor(tensor.name, data, raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.mark.parametrize(
    ("type_", "dtype", "error"),
    [
        (Type.F32, torch.float32, 0),
        (Type.F16, torch.float16, 2**-11),
        (Type.BF16, torch.bfloat16, 2**-8),
        (Type.Q8_0, torch.bfloat16, 1 / 250),
        (Type.Q4_0, torch.bfloat16, 1 / 7),
        (Type.Q4_1, torch.bfloat16, 1 / 14),
        (Type.Q4_K, torch.bfloat16, None),
        (Type.Q5_K, torch.bfloat16, None),
        (Type.Q6_K, torch.bfloat16, None),
    ],
    ids=lambda value: value.name if isinstance(value, Type) else "",
)
def test_every_gguf_type_reads_as_the_gguf_package_does(tmp_path, type_, dtype, error):
    """And, where the weights are known, no further from them than `error` of the largest."""
    model = mistral(hidden_size=256, intermediate_size=512)
    held = write_typed_gguf(model, tmp_path / "model.gguf", type_)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert checkpoint.dtype == dtype
    for name, weight in canonical(model).items():
        read = checkpoint.read(name)
        heads = 8 if "wq" in name else 2 if "wk" in name else None
        expected = torch.from_numpy(held[name])
        if heads:
            expected = expected[half_split_rows(len(expected), heads)]
        assert torch.equal(read.float(), expected), name
        if error is not None:
            assert (read - weight).abs().max() <= error * weight.abs().max(), name


def header_as_gguf_reads_it(file: Path) -> tuple[dict, list]:
    reader = gguf.GGUFReader(file)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = [(t.name, tuple(t.shape), int(t.tensor_type), t.data_offset) for t in reader.tensors]
    return metadata, tensors


def assert_header_is_read_as_gguf_does(file: Path) -> None:
    header = gguf_header.read_header(file)
    metadata, tensors = header_as_gguf_reads_it(file)
    assert repr(header.metadata) == repr(metadata)  # repr tells 1 from True and 1.0
    assert [(t.name, t.dims, t.type_id, header.data_start + t.offset) for t in header.tensors] == tensors


@pytest.mark.parametrize("alignment", [None, 8, 32, 4096])
def test_header_with_every_value_type_equals_that_of_gguf_reader(tmp_path, alignment):
    scalars = {
        GGUFValueType.UINT8: [0, 255],
        GGUFValueType.INT8: [-128, 127],
        GGUFValueType.UINT16: [0, 2**16 - 1],
        GGUFValueType.INT16: [-(2**15), 2**15 - 1],
        GGUFValueType.UINT32: [0, 2**32 - 1],
        GGUFValueType.INT32: [-(2**31), 2**31 - 1],
        GGUFValueType.UINT64: [0, 2**64 - 1],
        GGUFValueType.INT64: [-(2**63), 2**63 - 1],
        GGUFValueType.FLOAT32: [-0.0, 1e-5, math.inf],
        GGUFValueType.FLOAT64: [1e-300, math.pi],
        GGUFValueType.BOOL: [True, False],
        GGUFValueType.STRING: ["▁né\n", "x"],
    }
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for type_, values in scalars.items():
        for n, value in enumerate(values):
            writer.add_key_value(f"{type_.name}.{n}", value, type_)
        writer.add_key_value(f"{type_.name}.array", values, GGUFValueType.ARRAY, sub_type=type_)
    for n, shape in enumerate([(3,), (2, 5), (2, 3, 4), (1, 2, 3, 7)]):
        writer.add_tensor(f"tensor.{n}", np.ones(shape, np.float16 if n % 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_header_is_read_as_gguf_does(tmp_path / "all.gguf")


def test_header_of_the_demo_equals_that_of_gguf_reader(demo_file):
    assert_header_is_read_as_gguf_does(demo_file)


# ---- memory and devices ----------------------------------------------------------------------------------

MEASURE = """
import sys, threading, time
from pathlib import Path
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.loader import EngineOptions, load_engine

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.0005):
        seen.append(anonymous())

checkpoint = open_checkpoint(Path(sys.argv[1]))
options = EngineOptions(dtype=sys.argv[2], ctx_size=16, prefill_chunk=16)
seen, done = [anonymous()], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
for _ in load_engine(checkpoint, options):
    seen.append(anonymous())
done.set()
thread.join()
print(max(seen) - seen[0])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """197 MB of bfloat16 weights in the HF layout, the same in GGUF as Q8_0."""
    folder = tmp_path_factory.mktemp("large")
    model = mistral(
        hidden_size=1024,
        num_hidden_layers=6,
        num_attention_heads=16,
        intermediate_size=3584,
        vocab_size=8192,
    ).to(torch.bfloat16)
    write_hf(model, folder / "hf")
    write_typed_gguf(model, folder / "q8.gguf", Type.Q8_0)
    (folder / "q8.f32").unlink()
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("name", "dtype", "in_flight"),
    # Blocks are held beside their numbers, and not all that is freed is used again.
    [("hf", "float32", 1), ("hf", "bfloat16", 1), ("q8.gguf", "float32", 3), ("q8.gguf", "bfloat16", 3)],
)
def test_loading_takes_the_model_and_about_one_tensor_of_memory(large, name, dtype, in_flight):
    config = open_checkpoint(large / name).config
    command = [sys.executable, "-c", MEASURE, str(large / name), dtype]
    model = config.n_params * getattr(torch, dtype).itemsize
    largest = 4 * max(map(math.prod, config.tensor_shapes().values()))
    most = model + in_flight * largest + (8 << 20)
    peaks: list[int] = []
    while not peaks or (peaks[-1] > most and len(peaks) < 4):  # the allocator's holes are not the loader's
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert min(peaks) <= most, peaks


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("budget", [0, 20_000, 40_000, 60_000, 1 << 30])
def test_auto_with_parts_on_disk_gives_the_logits_of_the_cpu(tmp_path, tied, budget):
    """From everything on disk over a growing part in memory to everything there."""
    folder = write_hf(mistral(window=4, tied=tied), tmp_path)
    parted = engine(folder, device="auto", max_memory={"cpu": budget})
    on_disk = [parameter.is_meta for parameter in parted.model.parameters()]
    assert any(on_disk) == (budget < 1 << 30)
    assert torch.equal(logits(parted, IDS), logits(engine(folder), IDS))


@pytest.mark.parametrize(
    ("device", "error"),
    [
        ("gpu", UsageError),
        ("", UsageError),
        ("cuda:x", UsageError),
        ("cuda:-1", UsageError),
        ("a\nb", UsageError),
        ("cuda:99", OutOfResources),
        ("meta", OutOfResources),
        ("xpu:7", OutOfResources),
    ],
)
def test_a_device_that_is_not_there_is_refused_by_name(tmp_path, device, error):
    folder = write_hf(MODEL, tmp_path)
    with pytest.raises(error) as caught:
        engine(folder, device=device)
    assert repr(device) in str(caught.value)


def test_only_the_accelerators_that_are_there_are_taken(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    model = SimpleNamespace()  # a named device is taken without a look at the model
    assert plan_devices(model, "cuda", torch.bfloat16) == {"": "cuda:0"}
    assert plan_devices(model, "cuda:1", torch.bfloat16) == {"": "cuda:1"}
    for absent in ("cuda:2", "mps"):
        with pytest.raises(OutOfResources, match=absent):
            plan_devices(model, absent, torch.bfloat16)


@pytest.mark.parametrize("options", [{}, {"device": "auto", "max_memory": {"cpu": 1 << 30}}])
@pytest.mark.parametrize(("free", "fits"), [(100_000, False), (200_000, True)])
def test_too_little_memory_is_refused_before_a_tensor_is_read(monkeypatch, tmp_path, options, free, fits):
    """74 KB of weights and 64 KB of cache: room for the weights alone is not enough."""
    sound, reads = open_checkpoint(write_hf(MODEL, tmp_path)), []
    checkpoint = dataclasses.replace(sound, read=lambda name: reads.append(name) or sound.read(name))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=free))
    loading = load_engine(checkpoint, EngineOptions(dtype="float32", ctx_size=500, **options))
    if fits:
        assert list(loading)
    else:
        with pytest.raises(OutOfResources, match=r"MiB of memory and .* MiB are free"):
            list(loading)
    assert bool(reads) == fits


# ---- GGUF files of the first release ---------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_only_a_gguf_of_the_first_release_without_its_window_is_noted(name):
    config = ModelConfig.of_variant(VARIANTS[name])
    noted = "--window 4096" in _lost_window(dataclasses.replace(config, sliding_window=None))
    assert noted == (VARIANTS[name].sliding_window == 4096)
    assert _lost_window(dataclasses.replace(config, sliding_window=4096)) == ""


def test_common_gguf_types_are_those_of_the_gguf_package():
    assert {type_id: _rare_type(type_id) for type_id in _TYPES} == _TYPES
