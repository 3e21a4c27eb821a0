"""Folders with a tokenizer.model and what a fine-tune added to it, as transformers reads them."""

import functools
import json
import shutil
import tempfile
from itertools import product
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint
from m7b.models.text import read_tokenizer
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.checkpoints.folder import tokenizer_source
from m7b.templates import JinjaTemplate
from m7b.tokenizer import load_tokenizer, official_file, save_tokenizer, to_gguf
from m7b.variants import TokenizerVersion
from tests.support.checkpoints import mistral, write_hf
from tests.support.tuned import write_tokenizer

ADDED = {"<|im_end|>": 32000, "<|im_start|>": 32001}


def entry(piece, *, special):
    return {"content": piece, "special": special, "lstrip": False, "rstrip": False, "normalized": False}


DECODER = {"32000": entry("<|im_end|>", special=True), "32001": entry("<tool>", special=False)}
LAYOUTS = {
    "added_tokens.json": {"added_tokens.json": ADDED},
    "legacy": {"added_tokens.json": ADDED, "tokenizer_config.json": {"legacy": True}},
    "added_tokens_decoder": {"tokenizer_config.json": {"added_tokens_decoder": DECODER}},
    "both": {
        "added_tokens.json": ADDED,
        "tokenizer_config.json": {"added_tokens_decoder": {"32000": DECODER["32000"]}},
    },
    "named special": {
        "added_tokens.json": ADDED,
        "special_tokens_map.json": {"additional_special_tokens": [*ADDED]},
        "tokenizer_config.json": {"eos_token": "<|im_end|>"},
    },
    "special tokens as objects": {
        "added_tokens.json": ADDED,
        "special_tokens_map.json": {"eos_token": entry("<|im_end|>", special=True)},
        "tokenizer_config.json": {"eos_token": entry("<|im_end|>", special=True)},
    },
    "pad without an id": {"tokenizer_config.json": {"pad_token": "[PAD]"}},
    "llama, legacy": {
        "added_tokens.json": ADDED,
        "tokenizer_config.json": {"legacy": True},
        "config.json": {"model_type": "llama"},
    },
    "v3": {"version": TokenizerVersion.V3},
    "v3 with added tokens": {
        "version": TokenizerVersion.V3, "added_tokens.json": {"<|im_end|>": 32768, "<|im_start|>": 32769},
    },
}  # fmt: skip


def write_layout(folder, layout):
    files = dict(LAYOUTS[layout]) if isinstance(layout, str) else dict(layout)
    shutil.copyfile(official_file(files.pop("version", TokenizerVersion.V1)), folder / "tokenizer.model")
    names = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    files["tokenizer_config.json"] = names | files.get("tokenizer_config.json", {})
    for name, content in ({"config.json": {"model_type": "mistral"}} | files).items():
        (folder / name).write_text(json.dumps(content))
    return folder


@functools.cache
def folder_of(layout):
    return write_layout(Path(tempfile.mkdtemp()), layout)


@functools.cache
def oracle(layout):
    return AutoTokenizer.from_pretrained(folder_of(layout))


@functools.cache
def our_tokenizer(layout, n_rows):
    return load_tokenizer(tokenizer_source(folder_of(layout), n_rows), "".join(MARKS))


MARKS = [*ADDED, "<tool>", "[PAD]", "<s>", "</s>", "[INST]", "[/INST]"]
# No two spaces in a row: there transformers merges pieces in another order than SentencePiece does.
PARTS = st.sampled_from([*MARKS, "user", " Hi", "\n", "é", "你好", "x-1", "<"])


@settings(deadline=None, max_examples=20)
@pytest.mark.parametrize("layout", LAYOUTS)
@given(parts=st.lists(PARTS, max_size=8))
def test_template_text_becomes_the_ids_of_transformers(layout, parts):
    """`<|im_start|>` became five pieces, and text behind `</s>` got a space."""
    text = "<s>" + "".join(parts)
    theirs = oracle(layout)
    rows = max(theirs.get_vocab().values()) + 1
    tokenizer = our_tokenizer(layout, rows)
    ours = JinjaTemplate("{{ text }}".replace("text", json.dumps(text)), tokenizer, "</s>")
    assert ours.encode([{"role": "user", "content": "u"}]) == theirs.encode(text, add_special_tokens=False)
    assert tokenizer.eos_id == theirs.eos_token_id
    assert tokenizer.vocab_size == rows


@pytest.mark.parametrize("text", ["<|im_start|>", "a<|im_end|>b", "</s>"])
def test_text_never_becomes_an_added_control_token(text):
    tokenizer = load_tokenizer(
        tokenizer_source(folder_of("added_tokens.json"), 32002), "<|im_end|><|im_start|>"
    )
    ids = tokenizer.encode(text, bos=False)
    assert max(ids) < 32000
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "added",
    [{"a": "x"}, {"a": -1}, {"a": 5}, {"a": 2**40}, {"": 32000}, {"a": True}, {"<s>": 32000}],
    ids=str,
)
def test_added_token_that_cannot_be_is_refused(added, tmp_path):
    write_layout(tmp_path, {"added_tokens.json": added})
    with pytest.raises(DamagedCheckpoint, match=r"added_tokens\.json|the added token"):
        load_tokenizer(tokenizer_source(tmp_path, 32001))


def test_added_tokens_survive_a_quantized_file_and_folder(tmp_path):
    source = tokenizer_source(folder_of("named special"), 32002)
    tokenizer = load_tokenizer(source)
    save_tokenizer(source, tokenizer, tmp_path)
    again = [
        load_tokenizer(tokenizer_source(tmp_path, 32002)),
        load_tokenizer(to_gguf(source, tokenizer, 32002)),
    ]
    for other in again:
        assert other.controls["<|im_start|>"] == 32001
        assert other.eos_id == 32000
        assert other.encode("Hi <|im_end|>", bos=True) == tokenizer.encode("Hi <|im_end|>", bos=True)


# ---- ids beyond the rows ---------------------------------------------------------------------------------


def write_checkpoint(folder, rows, **files):
    write_layout(write_hf(mistral(vocab_size=rows), folder), files | {"config.json": read_config(folder)})
    return open_checkpoint(folder)


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    "files",
    [{"tokenizer_config.json": {"pad_token": "[PAD]"}}, {"added_tokens.json": {"[PAD]": 32000}}],
    ids=["special", "added"],
)
def test_token_beyond_the_rows_is_harmless_where_no_text_becomes_it(files, tmp_path):
    """One [PAD] ended the loading."""
    checkpoint = write_checkpoint(tmp_path, 32000, **files)
    tokenizer = read_tokenizer(checkpoint)
    assert max(tokenizer.encode("a [PAD] b", bos=True)) < 32000


def test_pad_beyond_the_rows_of_a_tokenizer_json_is_harmless(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 32000, **{"added_tokens.json": {"[PAD]": 32000}})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink(missing_ok=True)
    checkpoint = open_checkpoint(tmp_path)
    tokenizer = read_tokenizer(checkpoint)
    assert tokenizer.vocab_size == 32001
    assert max(tokenizer.encode("a [PAD] b", bos=True)) < 32000
    assert len(to_gguf(checkpoint.tokenizer, tokenizer, 32000).pieces) == 32000


def test_tokenizer_whose_words_lie_beyond_the_rows_is_refused(tmp_path):
    with pytest.raises(UnsupportedCheckpoint, match="32000 ids, the model 31000"):
        read_tokenizer(write_checkpoint(tmp_path, 31000))


# ---- how added tokens are found --------------------------------------------------------------------------

EDGES = [
    dict(zip(("lstrip", "rstrip", "single_word"), flags, strict=True))
    for flags in product((False, True), repeat=3)
]
EDGE_PARTS = st.lists(
    st.sampled_from(["<t>", "<t>", " ", "\n", "a", "é", "_", "1.", "</s>", "<"]), max_size=7
)


@functools.cache
def write_with_edges(kind, edges, is_special):
    """transformers' tokenizer and ours of a folder with one added token that is found as `edges` say."""
    folder = Path(tempfile.mkdtemp())
    if kind == "tokenizer.model":
        decoder = {"32000": entry("<t>", special=is_special) | EDGES[edges]}
        write_layout(folder, {"tokenizer_config.json": {"added_tokens_decoder": decoder}})
    else:
        write_tokenizer(folder, [], tokenizer_class="PreTrainedTokenizerFast", add_bos_token=None)
        model = Tokenizer.from_file(str(folder / "tokenizer.json"))
        add = model.add_special_tokens if is_special else model.add_tokens
        add([AddedToken("<t>", normalized=False, special=is_special, **EDGES[edges])])
        model.save(str(folder / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(folder)
    return theirs, load_tokenizer(tokenizer_source(folder, len(theirs)), "<t></s>" if is_special else "</s>")


@settings(deadline=None, max_examples=40)
@pytest.mark.parametrize("edges", range(8), ids=[str([*e.values()]) for e in EDGES])
@pytest.mark.parametrize(
    ("kind", "is_special"), [("tokenizer.json", True), ("tokenizer.json", False), ("tokenizer.model", True)]
)
@given(parts=EDGE_PARTS)
def test_added_tokens_take_spaces_and_words_as_those_of_transformers(kind, is_special, edges, parts):
    """A template's control token left the spaces around it, whatever its flags said."""
    text = "<s>" + "".join(parts)
    assume("  " not in text)  # transformers merges these in another order than SentencePiece does
    theirs, tokenizer = write_with_edges(kind, edges, is_special)
    ours = JinjaTemplate("{{ text }}".replace("text", json.dumps(text)), tokenizer, "</s>")
    assert ours.encode([{"role": "user", "content": "u"}]) == theirs.encode(text, add_special_tokens=False)
