"""Text to ids and back: golden vectors, transformers and llama.cpp as oracles, and damaged files."""

import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from m7b.errors import DamagedCheckpoint, UnsupportedCheckpoint, UsageError
from m7b.runtime.checkpoints import open_checkpoint
from m7b.runtime.checkpoints.folder import tokenizer_source
from m7b.tokenizer import GGUFVocabulary, OfficialVocabulary, SentencePieceFile, load_tokenizer, official_file
from m7b.variants import TokenizerVersion

N_CONTROL = {"v1": 3, "v3": 771, "demo": 17}
CONTROL = ["<unk>", "<s>", "</s>", "[INST]", "[TOOL_CALLS]", "[control_8]", "<0x0A>", "<|im_start|>"]
FILES = {name: official_file(TokenizerVersion(name)) for name in ("v1", "v3")}
FILES["v3-bundled"] = FILES["v3"].with_name("mistral_instruct_tokenizer_240323.model.v3")
TEXTS = st.lists(st.sampled_from(CONTROL) | st.text(max_size=5), max_size=6).map("".join)
ORIGINS = ["official", "gguf"]


def golden(name):
    file = Path(__file__).parent.parent / "golden" / f"{name}_public.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return pytest.mark.parametrize("case", rows, ids=[row["id"] for row in rows])


def gguf_vocabulary(name):
    """What llama.cpp's converter writes of one of Mistral's SentencePiece models."""
    model = sentencepiece_model_pb2.ModelProto.FromString(FILES[name].read_bytes())
    pieces, types, scores = zip(*((p.piece, p.type, p.score) for p in model.pieces), strict=True)
    return GGUFVocabulary(Path("model.gguf"), "llama", "default", pieces, types, scores, [], 1, True, True)


@functools.cache
def mistral(name, origin="official"):
    if origin == "gguf":
        return load_tokenizer(gguf_vocabulary(name))
    if name == "v3-bundled":
        return load_tokenizer(SentencePieceFile(FILES[name]))
    return load_tokenizer(OfficialVocabulary(TokenizerVersion(name)))


@pytest.fixture(scope="module")
def demo(demo_file):
    return load_tokenizer(open_checkpoint(demo_file).tokenizer)


@pytest.fixture(scope="module")
def oracle(demo_file):
    return AutoTokenizer.from_pretrained(demo_file.parent, gguf_file=demo_file.name)


@pytest.fixture(params=["sentencepiece", "tokenizers"])
def either(request):
    return mistral("v1") if request.param == "sentencepiece" else load_tokenizer(BYTE_LEVEL)


@pytest.mark.parametrize("origin", ORIGINS)
@golden("encode")
def test_encoding_equals_the_golden_ids(case, origin):
    tokenizer = mistral(case["tokenizer"], origin)
    assert tokenizer.encode(case["text"], bos=False) == case["ids"]
    assert tokenizer.encode(case["text"], bos=True) == case["ids_bos"]
    assert tokenizer.decode(case["ids"]) == tokenizer.decode(case["ids_bos"]) == case["decoded"]


@pytest.mark.parametrize("origin", ORIGINS)
@golden("decode")
def test_decoding_equals_the_golden_text(case, origin):
    tokenizer, ids = mistral(case["tokenizer"], origin), case["ids"]
    assert tokenizer.decode(ids) == case["decoded"]
    assert [tokenizer.piece(token) for token in ids] == case["pieces"]
    assert [token for token in ids if tokenizer.is_control(token)] == [
        token for token in ids if 0 < token < N_CONTROL[case["tokenizer"]]
    ]
    assert [tokenizer.decode(ids[:n]) for n in range(1, len(ids) + 1)] == case["prefix_decodes"]


@pytest.mark.parametrize(("name", "origin"), [*itertools.product(["v1", "v3"], ORIGINS), ("demo", "gguf")])
@settings(deadline=None)
@given(text=TEXTS)
def test_text_never_becomes_a_control_id(name, origin, demo, text):
    tokenizer = demo if name == "demo" else mistral(name, origin)
    assert all(token >= N_CONTROL[name] for token in tokenizer.encode(text, bos=False))


@pytest.mark.parametrize("origin", ORIGINS)
@settings(deadline=None)
@given(text=st.text())
def test_sentencepiece_gives_text_back_but_for_its_space_sign(origin, text):
    tokenizer = mistral("v1", origin)
    assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text.replace("▁", " ")


CORPUS = [
    "", " ", "    a", "a   ", "\n\n\n", " \n \t\tx\r\ny", "1234567890 3.14 0x1F 1e-9", "a1b22c333",
    "I'll we've don't CAN'T it's 'tis 'S ''", "Hello, how are you?", "!!! ... ?!? --- ___ ***",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A: pass\n", '{"a": [1, 2, {"b": null}]}\n\n',
    "for (int i=0;i<n;++i){\n\ta[i]+=b[i];\n}", "$100 €50 + = < > ^ ~ | `", "naïve café e\u0301 Ångström",
    "Привет, как дела?", "你好，世界！日本語。한국어", "مرحبا שלום हिन्दी ไทย", "😀 🫠 👨‍👩‍👧‍👦 🇫🇷 ❤️",
    "\u00a0nbsp\u2003em\u3000ideo\u200b\ufeff", "a\u2028b\x85\x0b\x0c", "A" * 60, "tail \n\n x",
    "http://x.y/z?q=r&s=%20#f", "[INST] hi [/INST] <s> </s> <|im_start|", "\x00\x01\x7f\x80", "\ufffd\ue000",
]  # fmt: skip


@pytest.mark.parametrize("text", CORPUS)
def test_demo_encodes_and_decodes_as_transformers_does(demo, oracle, text):
    ids = demo.encode(text, bos=False)
    assert ids == oracle.encode(text, add_special_tokens=False)
    assert demo.decode(ids) == oracle.decode(ids, clean_up_tokenization_spaces=False) == text


# transformers' GGUF reader splits no digits off, and these bytes have no pieces: llama.cpp drops them, too.
NO_PIECES = "\x04\x06\x13\x14\x16\x1d"
OTHERS = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "N"], exclude_characters=NO_PIECES)


@settings(deadline=None)
@given(text=st.text(OTHERS))
def test_demo_encodes_and_decodes_any_text_as_transformers_does(demo, oracle, text):
    ids = demo.encode(text, bos=False)
    assert ids == oracle.encode(text, add_special_tokens=False)
    assert demo.decode(ids) == text


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("  23 and\n 4", [256, 34, 35, 284, 3805, 36]),
        ("x\t\t7\n\n 8²", [104, 1656, 39, 8866, 40, 19133]),
        ("½ of ٣٤", [16738, 282, 216, 164, 113, 164, 114]),
        ("2nd's  5'll\x04", [34, 268, 506, 256, 37, 3060]),
    ],
)
def test_demo_splits_numbers_off_as_llama_cpp_does(demo, text, ids):
    """Vectors from llama.cpp, where transformers' GGUF reader differs."""
    assert demo.encode(text, bos=False) == ids


BYTE_LEVEL = GGUFVocabulary(
    Path("model.gguf"), "gpt2", "gpt-2",
    pieces=["<bos>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "ab", "abc", "Ġa", "12", "123"],
    types=[3, *[1] * 261], scores=[0.0] * 262, merges=["a b", "Ġ a", "1 2"], bos_id=0, adds_bos=True,
    adds_space=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "text", "pieces"),
    [
        ({}, "abc a123", ["ab", "c", "Ġa", "12", "3"]),
        ({"pre": "smollm"}, "abc a123", ["ab", "c", "Ġa", "1", "2", "3"]),
        ({"pre": "llama-bpe"}, "abc 1234", ["abc", "Ġ", "123", "4"]),  # whole words before merges
        ({"adds_space": True}, "a", ["a"]),  # a prefix of SentencePiece only
        ({"types": [3, *[1] * 257, 4, 1, 1, 1]}, "abcabc", ["abc", "abc"]),
    ],
    ids=["gpt-2", "smollm", "llama-bpe", "space-prefix", "user-defined"],
)
def test_byte_level_vocabulary_encodes_as_llama_cpp_does(changes, text, pieces):
    tokenizer = load_tokenizer(replace(BYTE_LEVEL, **changes))
    assert [tokenizer.piece(token) for token in tokenizer.encode(text, bos=True)] == ["<bos>", *pieces]


def test_sentencepiece_of_a_gguf_heeds_its_metadata():
    """Once the piece <s> was taken for BOS, whatever the metadata said."""
    source = replace(gguf_vocabulary("v3"), bos_id=5, adds_space=False)
    tokenizer = load_tokenizer(replace(source, pieces=["<unk>", "<bos>", *source.pieces[2:]]))
    ids = tokenizer.encode("a", bos=True)
    assert [tokenizer.piece(token) for token in ids] == ["[TOOL_CALLS]", "a"]
    assert tokenizer.bos_id == 5


OFFICIAL = FILES["v1"].read_bytes()
PANICS = (  # a merge of which the result is no piece, and a template that names a token it does not define
    b'{"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}',
    b'{"model": {"vocab": {"a": 0}, "merges": []}, "post_processor": {"type": "TemplateProcessing", '
    b'"pair": [], "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "special_tokens": {}}}',
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tokenizer.model", content) for content in (b"", OFFICIAL[:1000], OFFICIAL[:-1], b"no model\n")),
        *(("tokenizer.json", content) for content in (b"", b"{", b"{}", b"[]", b"\xff", *PANICS)),
    ],
    ids=lambda value: str(value[:15]),
)
def test_damaged_tokenizer_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=f"{tmp_path}/{name}"):
        load_tokenizer(tokenizer_source(tmp_path, vocab_size=32000))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "llama"}, DamagedCheckpoint),  # no pieces for bytes
        ({"model": "llama", "pieces": [5], "types": [1], "scores": [0.0]}, DamagedCheckpoint),
        ({"model": "llama", "pieces": ["a"], "types": [99], "scores": [0.0]}, DamagedCheckpoint),
        ({"model": "llama", "pieces": ["a"], "types": [1], "scores": ["high"]}, DamagedCheckpoint),
        ({"pieces": [5]}, DamagedCheckpoint),
        ({"merges": ["a zz"]}, DamagedCheckpoint),
        ({"merges": ["a c"]}, DamagedCheckpoint),  # "ac" is no piece, of which tokenizers panics
        ({"merges": [5]}, DamagedCheckpoint),
        ({"pre": "jina"}, UnsupportedCheckpoint),
        ({"pre": "default"}, UnsupportedCheckpoint),  # llama.cpp guesses, badly
        ({"model": "bert"}, UnsupportedCheckpoint),
    ],
    ids=str,
)
def test_unusable_vocabulary_of_a_gguf_is_named(changes, error):
    with pytest.raises(error, match=r"model\.gguf"):
        load_tokenizer(replace(BYTE_LEVEL, **changes))


def load_json(folder, *, letters="ab <s>/", template="$A", config=None, cuts=False):
    """A tokenizer.json of single characters, beside a tokenizer_config.json if there is a `config`."""
    pieces = ["<unk>", "<s>", *letters]
    model = tokenizers.Tokenizer(tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    model.decoder = tokenizers.decoders.Fuse()
    model.add_special_tokens(["<s>"])
    model.post_processor = tokenizers.processors.TemplateProcessing(template, None, [("<s>", 1)])
    if cuts:
        model.enable_truncation(3)
        model.enable_padding(length=3, pad_token="<unk>", direction="left")
    model.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(tokenizer_source(folder, vocab_size=len(pieces)))


@pytest.mark.parametrize("cuts", [False, True], ids=["", "padded"])
@pytest.mark.parametrize(
    ("template", "config", "expected"),
    [
        ("<s> $A", {"bos_token": "<s>"}, (1, True)),
        ("$A", {"bos_token": "<s>"}, (1, False)),
        ("<s> $A", {"bos_token": {"content": "<s>"}, "add_bos_token": False}, (1, False)),
        ("$A", {"bos_token": "<s>", "add_bos_token": True}, (1, True)),
        ("$A", {"add_bos_token": True}, (None, False)),
        ("<s> $A", None, (1, True)),
        ("$A <s>", None, (None, False)),
        ("$A", None, (None, False)),
    ],
)
def test_tokenizer_json_begins_texts_as_its_folder_says(tmp_path, template, config, cuts, expected):
    tokenizer = load_json(tmp_path, template=template, config=config, cuts=cuts)
    assert (tokenizer.bos_id, tokenizer.adds_bos) == expected


@pytest.mark.parametrize("cuts", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("text", ["a", "a <s>"])
def test_tokenizer_json_neither_cuts_nor_pads_a_text(tmp_path, text, cuts):
    """Files keep the truncation and padding of a training run."""
    tokenizer = load_json(tmp_path, template="<s> $A", cuts=cuts)
    ids = tokenizer.encode(text, bos=False)
    assert [tokenizer.piece(token) for token in ids] == [*text]
    assert tokenizer.decode([1, *ids]) == text


@pytest.mark.parametrize(("template", "bos_id"), [("$A", None), ("<s> $A", 1)])
def test_tokenizer_json_need_not_know_latin_letters(tmp_path, template, bos_id):
    tokenizer = load_json(tmp_path, letters="你好", template=template)
    assert tokenizer.decode(tokenizer.encode("你好", bos=False)) == "你好"
    assert tokenizer.bos_id == bos_id


def test_bos_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match="BOS"):
        load_json(tmp_path).encode("a", bos=True)


def test_text_that_is_not_unicode_is_refused(either):
    """An argument that is not UTF-8 arrives as lone surrogates, and JSON can spell them."""
    with pytest.raises(UsageError, match="surrogate"):
        either.encode("a\udcffb", bos=False)


def test_id_beyond_the_vocabulary_has_no_text(either):
    """A model may have more rows than its tokenizer has ids, and draw one."""
    ids = either.encode("a", bos=False)
    assert either.decode([*ids, either.vocab_size]) == either.decode(ids)
    assert str(either.vocab_size) in either.piece(either.vocab_size)
