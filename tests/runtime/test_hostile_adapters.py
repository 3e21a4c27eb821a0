"""Damaged and hostile adapters: refused in one line that names the file, before a weight is read."""

import json

import pytest
import torch

from m7b.errors import CheckpointNotFound, DamagedCheckpoint, M7bError, UnsupportedCheckpoint
from m7b.runtime.adapters import open_adapter
from m7b.runtime.model.config import ModelConfig
from tests.support.adapters import adapted_engine, draw_pairs, name_tensors, write_gguf_adapter, write_peft
from tests.support.checkpoints import mistral, write_hf

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_hf(mistral(window=None, **SHAPE), tmp_path_factory.mktemp("base"))


def refuse(path, *words, kind):
    """`path` is refused as `kind`, in one line with `words`."""
    with pytest.raises(M7bError) as caught:
        open_adapter(path, CONFIG)
    text = str(caught.value)
    assert type(caught.value) is kind, text
    assert text.isprintable()
    assert [word for word in words if word not in text] == [], text


MODEL = mistral(window=None, **SHAPE)
PAIRS = draw_pairs(MODEL, targets=["q_proj", "down_proj"])
Q = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = name_tensors(PAIRS)
CONFIG = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    hidden_dim=96,
    vocab_size=64,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=None,
    max_seq_len=4096,
    tied_embeddings=False,
)


@pytest.mark.parametrize(
    ("config", "words", "kind"),
    [
        ({"peft_type": "LOHA"}, ["peft_type", "LOHA"], UnsupportedCheckpoint),
        ({"peft_type": ...}, ["peft_type"], UnsupportedCheckpoint),
        ({"use_dora": True}, ["use_dora", "DoRA"], UnsupportedCheckpoint),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save"], UnsupportedCheckpoint),
        ({"trainable_token_indices": [5]}, ["trainable_token_indices"], UnsupportedCheckpoint),
        ({"target_parameters": ["a"]}, ["target_parameters"], UnsupportedCheckpoint),
        ({"layer_replication": [[0, 1]]}, ["layer_replication"], UnsupportedCheckpoint),
        ({"alora_invocation_tokens": [1]}, ["alora_invocation_tokens"], UnsupportedCheckpoint),
        ({"use_qalora": True}, ["use_qalora"], UnsupportedCheckpoint),
        ({"bias": "all"}, ["bias", "all"], UnsupportedCheckpoint),
        ({"bias": "lora_only"}, ["bias", "lora_only"], UnsupportedCheckpoint),
        ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights", "pissa"], UnsupportedCheckpoint),
        ({"init_lora_weights": "olora"}, ["init_lora_weights", "olora"], UnsupportedCheckpoint),
        ({"r": float("nan")}, ["r is NaN"], DamagedCheckpoint),
        ({"r": 0}, ["r is 0"], DamagedCheckpoint),
        ({"r": -4}, ["r is -4"], DamagedCheckpoint),
        ({"r": 4.0}, ["r is 4.0"], DamagedCheckpoint),
        ({"r": True}, ["r is true"], DamagedCheckpoint),
        ({"r": "4"}, ["r is"], DamagedCheckpoint),
        ({"r": 10**30}, ["r is 1000"], DamagedCheckpoint),
        ({"r": ...}, ["r is missing"], DamagedCheckpoint),
        ({"r": 5}, ["_proj", "lora_A", "is 4x", "5x"], DamagedCheckpoint),
        ({"lora_alpha": float("inf")}, ["lora_alpha"], DamagedCheckpoint),
        ({"lora_alpha": ...}, ["lora_alpha is missing"], DamagedCheckpoint),
        ({"lora_alpha": 10**400}, ["lora_alpha"], DamagedCheckpoint),
        ({"use_rslora": "yes"}, ["use_rslora"], DamagedCheckpoint),
        ({"rank_pattern": ["q_proj"]}, ["rank_pattern"], DamagedCheckpoint),
        ({"rank_pattern": {"q_proj": 5}}, ["q_proj", "4x64", "5x64"], DamagedCheckpoint),
        ({"rank_pattern": {"q_proj": float("nan")}}, ["rank_pattern.q_proj"], DamagedCheckpoint),
        ({"alpha_pattern": {"q_proj": "8"}}, ["alpha_pattern.q_proj"], DamagedCheckpoint),
        ({"alpha_pattern": {"(q_proj": 8}}, ["alpha_pattern", "(q_proj"], DamagedCheckpoint),
        ({"alpha_pattern": {"(.+)+x": 8}}, ["alpha_pattern"], DamagedCheckpoint),
        ({"alpha_pattern": {"(.|.)" * 30 + "x": 8}}, ["alpha_pattern"], DamagedCheckpoint),
        ({"alpha_pattern": {".*" * 30 + "x": 8}}, ["alpha_pattern"], DamagedCheckpoint),
        ({"alpha_pattern": {"a{9999999999}": 8}}, ["alpha_pattern"], DamagedCheckpoint),
    ],
    ids=str,
)
def test_configurations_that_ask_for_more_or_make_no_sense_are_refused(tmp_path, config, words, kind):
    folder = write_peft(tmp_path / "a", PAIRS, **config)
    refuse(folder, "adapter_", *words, kind=kind)


@pytest.mark.parametrize(
    ("changes", "words", "kind"),
    [
        ({f"{Q}.lora_magnitude_vector": torch.ones(64)}, ["DoRA"], UnsupportedCheckpoint),
        ({f"{Q}.bias": torch.ones(64)}, ["bias"], UnsupportedCheckpoint),
        ({f"{Q}.lora_B.bias": torch.ones(64)}, ["bias"], UnsupportedCheckpoint),
        (
            {"base_model.model.lm_head.modules_to_save.weight": torch.ones(64, 64)},
            ["whole weight"],
            UnsupportedCheckpoint,
        ),
        (
            {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)},
            ["lm_head", "output"],
            UnsupportedCheckpoint,
        ),
        (
            {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 64)},
            ["embedding"],
            UnsupportedCheckpoint,
        ),
        ({"base_model.model.model.embed_tokens.weight": torch.ones(4)}, ["embedding"], UnsupportedCheckpoint),
        ({f"{Q}.lora_A.weight": None}, ["q_proj.lora_B", "other half"], DamagedCheckpoint),
        ({f"{Q}.lora_B.weight": None}, ["q_proj.lora_A", "other half"], DamagedCheckpoint),
        ({f"{Q}.lora_A.weight": torch.ones(4, 63)}, ["4x63", "4x64"], DamagedCheckpoint),
        ({f"{Q}.lora_B.weight": torch.ones(4, 64)}, ["lora_B", "4x64", "64x4"], DamagedCheckpoint),
        ({f"{Q}.lora_A.weight": torch.ones(64)}, ["lora_A", "64"], DamagedCheckpoint),
        ({f"{Q}.lora_A.weight": torch.ones(())}, ["a scalar"], DamagedCheckpoint),
        ({f"{Q}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}, ["I8"], UnsupportedCheckpoint),
        ({f"{Q}.lora_A.other.weight": torch.ones(4, 64)}, ["the same as"], DamagedCheckpoint),
        (
            {Q.replace("0", "2") + ".lora_A.weight": torch.ones(4, 64)},
            ["layers.2", "2 layers"],
            DamagedCheckpoint,
        ),
        ({Q.replace("0", "00") + ".lora_A.weight": torch.ones(4, 64)}, ["layers.00"], DamagedCheckpoint),
        (
            {Q.replace("q_proj", "qkv_proj") + ".lora_A.weight": torch.ones(4, 64)},
            ["qkv_proj"],
            DamagedCheckpoint,
        ),
        ({"\x1b[2J\n": torch.ones(1)}, ["\\x1b"], DamagedCheckpoint),
        (dict.fromkeys(TENSORS), ["without tensors"], DamagedCheckpoint),
    ],
    ids=lambda value: str([*value])[-60:] if isinstance(value, dict) else None,
)
def test_tensors_that_fit_no_linear_of_the_model_are_refused(tmp_path, changes, words, kind):
    tensors = {name: tensor for name, tensor in (TENSORS | changes).items() if tensor is not None}
    refuse(write_peft(tmp_path / "a", PAIRS, tensors=tensors), str(tmp_path), *words, kind=kind)


def test_files_that_are_cut_short_overlap_or_could_run_code_are_refused(tmp_path):
    whole = write_peft(tmp_path / "a", PAIRS) / "adapter_model.safetensors"
    data = whole.read_bytes()
    whole.write_bytes(data[:-1])
    refuse(whole.parent, "not a whole safetensors file", kind=DamagedCheckpoint)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    first, second, *_ = (name for name, entry in header.items() if entry.get("shape") == [4, 64])
    header[second]["data_offsets"] = header[first]["data_offsets"]
    told = json.dumps(header).encode().ljust(size)
    whole.write_bytes(len(told).to_bytes(8, "little") + told + data[8 + size :])
    refuse(whole.parent, "not a whole safetensors file", kind=DamagedCheckpoint)
    whole.unlink()
    refuse(whole.parent, "adapter_model.safetensors is missing", kind=DamagedCheckpoint)
    torch.save(TENSORS, whole.with_name("adapter_model.bin"))
    refuse(whole.parent, "adapter_model.bin", "pickle", kind=UnsupportedCheckpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_when_they_are_loaded(tmp_path, base, value):
    odd = TENSORS[f"{Q}.lora_A.weight"].clone()
    odd[1, 2] = value
    folder = write_peft(tmp_path / "a", PAIRS, tensors=TENSORS | {f"{Q}.lora_A.weight": odd})
    with pytest.raises(DamagedCheckpoint, match=r"q_proj\.lora_A\.weight holds values that are not finite"):
        adapted_engine(base, folder)


@pytest.mark.parametrize(
    ("metadata", "words", "kind"),
    [
        ({"general.type": "model"}, ["of model, not an adapter", "-m"], UnsupportedCheckpoint),
        ({"general.type": None}, ["not an adapter"], UnsupportedCheckpoint),
        ({"adapter.type": "control_vector"}, ["adapter.type", "control_vector"], UnsupportedCheckpoint),
        ({"adapter.type": None}, ["adapter.type"], UnsupportedCheckpoint),
        ({"general.architecture": "qwen2"}, ["general.architecture", "qwen2"], UnsupportedCheckpoint),
        ({"adapter.lora.alpha": float("nan")}, ["adapter.lora.alpha is NaN"], DamagedCheckpoint),
        ({"adapter.lora.alpha": float("inf")}, ["adapter.lora.alpha"], DamagedCheckpoint),
        ({"adapter.lora.alpha": "16"}, ["adapter.lora.alpha"], DamagedCheckpoint),
        ({"adapter.lora.alpha": -1.0}, ["adapter.lora.alpha"], DamagedCheckpoint),
        ({"adapter.alora.invocation_tokens": "x"}, ["aLoRA"], UnsupportedCheckpoint),
    ],
    ids=str,
)
def test_gguf_files_that_are_no_such_adapter_are_refused(tmp_path, metadata, words, kind):
    file = write_gguf_adapter(tmp_path / "a.gguf", PAIRS, MODEL, **metadata)
    refuse(file, str(file), *words, kind=kind)


def test_gguf_adapters_of_other_shapes_or_cut_short_are_refused(tmp_path):
    wide = draw_pairs(mistral(**(SHAPE | {"hidden_size": 128})), targets=["q_proj"])
    refuse(write_gguf_adapter(tmp_path / "a.gguf", wide, MODEL), "4x128", "4x64", kind=DamagedCheckpoint)
    deep = draw_pairs(mistral(**(SHAPE | {"num_hidden_layers": 3})), targets=["o_proj"])
    file = write_gguf_adapter(tmp_path / "b.gguf", deep, MODEL)
    refuse(file, "blk.2.attn_output", "no linear", "2 layers", kind=DamagedCheckpoint)
    file.write_bytes(write_gguf_adapter(tmp_path / "c.gguf", PAIRS, MODEL).read_bytes()[:-64])
    refuse(file, "ends at byte", kind=DamagedCheckpoint)


def test_what_is_no_adapter_is_named(tmp_path, base):
    refuse(tmp_path / "nowhere", "No such file", kind=CheckpointNotFound)
    refuse(base, "a model, not an adapter", "-m", kind=UnsupportedCheckpoint)
    refuse(base / "config.json", "no adapter", "adapter_config.json", kind=UnsupportedCheckpoint)
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "no adapter", "adapter_config.json", kind=UnsupportedCheckpoint)
