"""GGUF files as they lie about: in parts, with other keys, with more than needed. The oracle is llama.cpp."""

import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.parts import gather_splits, list_part_names, name_whole
from m7b.runtime.checkpoints import open_checkpoint
from tests.support.checkpoints import engine, llama_cpp_logits, logits, mistral, write_gguf

MODEL = mistral()
IDS = list(range(1, 40))
NO_VOCABULARY = {"tokenizer.ggml.model": "no_vocab"}


def write_split(folder: Path, model=MODEL, name: str = "model") -> list[Path]:
    """MODEL in three parts, as llama.cpp names them."""
    folder.mkdir(exist_ok=True)
    write_gguf(model, folder / f"{name}.gguf", n_part_tensors=8, **NO_VOCABULARY)
    parts = sorted(folder.glob(f"{name}-*-of-*.gguf"))
    assert len(parts) == 3
    return parts


def rewrite(part: Path, **changes: int) -> None:
    """Write the part anew with other metadata of the split; `drop` leaves out so many of its tensors."""
    reader, to = GGUFReader(part), part.with_suffix(".new")
    writer = GGUFWriter(to, "llama")
    drop = changes.pop("drop", 0)
    for name, field in reader.fields.items():
        key = name.removeprefix("split.")
        if not name.startswith(("GGUF.", "general.architecture")) and changes.get(key, 0) is not None:
            writer.add_key_value(name, changes.get(key, field.contents()), field.types[0])
    for tensor in reader.tensors[drop:]:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    to.replace(part)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.gguf", ["a.gguf"]),
        ("a-00002-of-00002.gguf", ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]),
        ("Q4/a-00001-of-00001.gguf", ["Q4/a-00001-of-00001.gguf"]),
        ("a-00003-of-00002.gguf", ["a-00003-of-00002.gguf"]),
        ("a-00000-of-00002.gguf", ["a-00000-of-00002.gguf"]),
        ("a-1-of-2.gguf", ["a-1-of-2.gguf"]),
        ("a-00001-of-99999.gguf", ["a-00001-of-99999.gguf"]),
        ("model-00001-of-00002.safetensors", ["model-00001-of-00002.safetensors"]),
    ],
)
def test_the_names_of_the_other_parts_follow_from_one(name, parts):
    assert list_part_names(name) == parts


def test_a_part_knows_what_the_file_was_called():
    assert [name_whole(name) for name in ("b/a-00002-of-00003.gguf", "a.gguf")] == ["b/a.gguf", "a.gguf"]


def test_files_are_grouped_by_their_split():
    names = ["b-00002-of-00002.gguf", "a.gguf", "b-00001-of-00002.gguf", "b-00001-of-00003.gguf"]
    assert gather_splits(names) == {
        "b-00001-of-00002.gguf": ["b-00002-of-00002.gguf", "b-00001-of-00002.gguf"],
        "a.gguf": ["a.gguf"],
        "b-00001-of-00003.gguf": ["b-00001-of-00003.gguf"],
    }


@pytest.mark.parametrize("given", [0, 1, 2, None], ids=["first", "second", "last", "folder"])
def test_a_split_is_one_checkpoint_whatever_part_is_named(tmp_path, given):
    parts = write_split(tmp_path / "model")
    path = tmp_path / "model" if given is None else parts[given]
    checkpoint = open_checkpoint(path)
    assert checkpoint.path == parts[0]
    assert {tensor.file for tensor in checkpoint.tensors.values()} == set(parts)
    assert torch.allclose(logits(engine(path), IDS), llama_cpp_logits(parts[0], IDS), atol=1e-5)


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("given", [0, 1, 2, None])
def test_a_missing_part_is_named(tmp_path, missing, given):
    """Found: "152 of 272 tensors are missing; fetch the checkpoint again"."""
    if missing == given:
        return
    parts = write_split(tmp_path / "model")
    parts[missing].unlink()
    with pytest.raises(DamagedCheckpoint, match=f"part {missing + 1} of 3 is missing") as caught:
        open_checkpoint(tmp_path / "model" if given is None else parts[given])
    assert str(parts[missing]) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"no": 2}, ["part 2 of 3", "part 3 of 3"]),
        ({"count": 4}, ["part 2 of 3", "part 2 of 4"]),
        ({"no": None}, ["part 2 of 3", "nothing of a split"]),
        ({"tensors.count": 9}, ["9 tensors", "21"]),
        ({"drop": 1}, ["21 tensors", "20"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_part_of_another_split_is_named(tmp_path, changes, words):
    parts = write_split(tmp_path / "model")
    rewrite(parts[1], **changes)
    for path in (parts[0], tmp_path / "model"):
        with pytest.raises(DamagedCheckpoint) as caught:
            open_checkpoint(path)
        assert [word for word in words if word not in str(caught.value)] == []


def test_a_part_that_was_copied_over_another_is_named(tmp_path):
    parts = write_split(tmp_path / "model")
    shutil.copy(parts[2], parts[1])
    with pytest.raises(DamagedCheckpoint, match="part 2 of 3, and says that it is part 3 of 3"):
        open_checkpoint(parts[0])


def test_a_part_that_repeats_tensors_of_another_is_named(tmp_path):
    parts = write_split(tmp_path / "model")
    shutil.copy(parts[0], parts[1])
    rewrite(parts[1], no=1, **{"tensors.count": 21})
    with pytest.raises(DamagedCheckpoint, match=r"has token_embd\.weight, as .*00001-of-00003\.gguf does"):
        open_checkpoint(parts[0])


def test_a_part_that_was_renamed_says_what_it_should_be_called(tmp_path):
    parts = write_split(tmp_path / "model")
    parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(DamagedCheckpoint, match=r"NAME-00001-of-00003\.gguf"):
        open_checkpoint(tmp_path / "model.gguf")


def test_two_splits_in_one_folder_are_two_files(tmp_path):
    write_split(tmp_path / "model")
    write_split(tmp_path / "model", mistral(seed=1), name="other")
    with pytest.raises(UnsupportedCheckpoint, match="2 GGUF files"):
        open_checkpoint(tmp_path / "model")


def test_a_whole_file_with_the_name_of_a_part_is_whole(tmp_path):
    """What a file is, its content says."""
    file = write_gguf(MODEL, tmp_path / "model-00001-of-00003.gguf")
    assert len(open_checkpoint(file).tensors) == 21


@pytest.mark.parametrize("count", [-1, 1.5, "3", True])
def test_a_count_of_parts_that_is_none_is_refused(tmp_path, count):
    file = write_gguf(MODEL, tmp_path / "model.gguf", **NO_VOCABULARY)
    reader = GGUFReader(file)
    writer = GGUFWriter(tmp_path / "bad.gguf", "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(name, field.contents(), field.types[0])
    add = {int: writer.add_int32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
    add[type(count)]("split.count", count)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DamagedCheckpoint, match=r"split\.count"):
        open_checkpoint(tmp_path / "bad.gguf")


# ---- keys and tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "extra", "keys"),
    [
        ("llama", {}, {}),
        ("mistral3", {}, {}),
        ("mistral3", {}, {"mistral3.attention.temperature_scale": 0.0}),
        ("llama", {"rope_freqs.weight": torch.ones(2)}, {}),
        ("llama", {}, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}),
        ("llama", {}, {"llama.rope.scaling.type": "linear"}),
        ("llama", {}, {"llama.rope.scaling.factor": 0.0}),
        ("llama", {}, {"llama.rope.scaling.type": "none"}),
    ],
)
def test_a_file_that_changes_nothing_runs_as_llama_cpp_runs_it(tmp_path, arch, extra, keys):
    """Of `mistral3` too the rows that RoPE turns together are neighbours, as in Mistral's own files."""
    file = write_gguf(MODEL, tmp_path / "model.gguf", arch=arch, extra=extra, **NO_VOCABULARY, **keys)
    assert torch.allclose(logits(engine(file), IDS), llama_cpp_logits(file, IDS), atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "extra", "keys"),
    [
        ("llama", {"rope_freqs.weight": torch.tensor([1.0, 8.0])}, {}),
    ],
)
def test_what_changes_the_logits_in_llama_cpp_is_refused(tmp_path, arch, extra, keys):
    plain = write_gguf(MODEL, tmp_path / "plain.gguf", **NO_VOCABULARY)
    file = write_gguf(MODEL, tmp_path / "model.gguf", arch=arch, extra=extra, **NO_VOCABULARY, **keys)
    assert not torch.allclose(llama_cpp_logits(file, IDS), llama_cpp_logits(plain, IDS), atol=1e-3)
    with pytest.raises(UnsupportedCheckpoint, match=next(iter({**extra, **keys}))):
        open_checkpoint(file)


def test_rows_past_the_vocabulary_are_kept(tmp_path):
    """Found: "token_embd.weight is 64x32, the configuration says 60x32"."""
    whole = write_gguf(MODEL, tmp_path / "whole.gguf")
    padded = write_gguf(MODEL, tmp_path / "padded.gguf", **{"llama.vocab_size": 60})
    assert torch.equal(logits(engine(padded), IDS), logits(engine(whole), IDS))
