"""Answers under a grammar, without a model: whatever is drawn from the allowed ids is valid to jsonschema."""

import datetime
import json
import random
import re
import time
from dataclasses import replace

import jsonschema
import jsonschema_specifications
import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m7b.call_format import MISTRAL
from m7b.constraint import AnyJson, Calls, JsonSchema, Lark, Place, Regex, compile_constraint
from m7b.constraint.vocabulary import list_token_bytes, strips_space
from m7b.errors import UsageError
from m7b.runtime.checkpoints import open_checkpoint
from m7b.tokenizer import OfficialVocabulary, TokenizerJson, load_tokenizer
from m7b.variants import TokenizerVersion
from tests.support.schemas import SCHEMAS

NAMES = ["v1", "v3", "demo", "metaspace"]
EXTRA_IDS = 70  # a model may have more ids than its tokenizer
BUDGET = 200


@pytest.fixture(scope="module")
def loaded(demo_file, tmp_path_factory):
    """The tokenizers by name, each with the ids that end an answer."""
    official = {v: load_tokenizer(OfficialVocabulary(TokenizerVersion(v))) for v in ("v1", "v3")}
    source = open_checkpoint(demo_file).tokenizer
    metaspace = load_tokenizer(TokenizerJson(write_metaspace(tmp_path_factory.mktemp("t")), "<s>", True))
    return official | {"demo": load_tokenizer(source), "metaspace": metaspace}


def write_metaspace(folder):
    """A tokenizer.json in the manner of Llama's, with few pieces and bytes for the rest."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *'▁{}[]",:ab',
        '▁"',
        '":',
        "▁a",
    ]
    merges = [("▁", '"'), ('"', ":"), ("▁", "a")]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    model.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    steps = [
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
    ]
    model.decoder = tokenizers.decoders.Sequence([*steps, tokenizers.decoders.Strip(" ", 1, 0)])
    model.add_special_tokens(["<unk>", "<s>", "</s>"])
    model.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def stop_id(tokenizer):
    return 2 if tokenizer.eos_id is None else tokenizer.eos_id


def compiled(grammar, tokenizer, *, continues=False):
    vocab_size, stop_ids = tokenizer.vocab_size + EXTRA_IDS, frozenset({stop_id(tokenizer)})
    return compile_constraint(
        grammar, tokenizer, vocab_size=vocab_size, stop_ids=stop_ids, continues=continues
    )


def text_of(tokenizer, ids, *, continues=False):
    """The text of an answer, as a stream would show it."""
    before = tokenizer.encode("a", bos=False) if continues else []
    return tokenizer.decode([*before, *ids])[len(tokenizer.decode(before)) :]


def ids_of(mask):
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))


class Author:
    """Draws ids at random, with a liking for the end once the answer has become long."""

    def __init__(self, tokenizer, seed):
        self.stop, self.draw = stop_id(tokenizer), random.Random(seed)
        closing = re.compile(rb'[^"\\{\[]*["}\])]+|nu?l*')
        texts = list_token_bytes(tokenizer) + [b""] * EXTRA_IDS
        self.closing = np.array([closing.fullmatch(text) is not None for text in texts])

    def write(self, matcher, follow=False):
        """The ids of one answer, without its end; None if the budget ran out."""
        ids = []
        while len(ids) < BUDGET:
            forced = matcher.find_forced() if follow else []
            for token in forced:
                assert token in ids_of(matcher.pack_mask())
                matcher.accept(token)
            ids += forced
            allowed = ids_of(matcher.pack_mask())
            if len(ids) > 20 or self.draw.random() < 0.3:
                closing = allowed[self.closing[allowed]]
                allowed = [self.stop] if self.stop in allowed else closing if len(closing) else allowed
            token = int(self.draw.choice(allowed))
            matcher.accept(token)
            if token == self.stop:
                return ids
            ids.append(token)
        return None


FORMATS = jsonschema.FormatChecker(formats=["ipv4", "ipv6", "uuid", "email"])


@FORMATS.checks("date", raises=ValueError)
def is_date(value):
    return bool(datetime.date.fromisoformat(value))


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(value):
    return datetime.datetime.fromisoformat(value).tzinfo is not None


def assert_valid(text, schema):
    value = json.loads(text)
    jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(value)


@pytest.fixture(scope="module")
def authors(loaded):
    return {name: Author(tokenizer, seed=0) for name, tokenizer in loaded.items()}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_drawn_is_valid_against_the_schema(schema, name, loaded, authors):
    tokenizer, author = loaded[name], authors[name]
    for continues in (False, True):
        constraint = compiled(JsonSchema(schema), tokenizer, continues=continues)
        answers = [author.write(constraint.start_matcher(), follow=n % 2 == 0) for n in range(4)]
        finished = [ids for ids in answers if ids is not None]
        assert finished
        for ids in finished:
            assert_valid(text_of(tokenizer, ids, continues=continues), schema)


@pytest.mark.parametrize("name", NAMES)
def test_any_json_is_an_object_or_an_array(name, loaded, authors):
    constraint = compiled(AnyJson(), loaded[name])
    answers = [authors[name].write(constraint.start_matcher()) for _ in range(20)]
    values = [json.loads(text_of(loaded[name], ids)) for ids in answers if ids is not None]
    assert {type(value) for value in values} == {dict, list}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", ["[a-c]+ [0-9]{2}", " ?é|\n\n", "x*", "ab/cd", "a▁b{1,3}"])
def test_whatever_is_drawn_matches_the_pattern(pattern, name, loaded, authors):
    for continues in (False, True):
        constraint = compiled(Regex(pattern), loaded[name], continues=continues)
        answers = [authors[name].write(constraint.start_matcher()) for _ in range(5)]
        texts = [text_of(loaded[name], ids, continues=continues) for ids in answers if ids is not None]
        assert texts
        assert [text for text in texts if not re.fullmatch(pattern, text)] == []


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_drawn_follows_a_lark_grammar(name, loaded, authors):
    grammar = Lark('start: "(" start ")" | /[0-9]/ body?\nbody: " and " start')
    constraint = compiled(grammar, loaded[name])
    texts = [
        text_of(loaded[name], ids)
        for _ in range(9)
        if (ids := authors[name].write(constraint.start_matcher()))
    ]
    assert texts
    for text in texts:
        assert re.fullmatch(r"[()0-9]+( and [()0-9]+)*", text)
        assert text.count("(") == text.count(")")


def run(matcher):
    """Follow what is forced to the next choice, and give its ids."""
    ids = []
    while forced := matcher.find_forced():
        for token in forced:
            matcher.accept(token)
        ids += forced
    return ids


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", [{"name": "get_weather", "arguments": {}}, ["é😀漢▁字", "a  b\n"], [[[]]], "x"]
)
def test_only_text_is_forced_as_the_tokenizer_would_write_it(value, name, loaded):
    tokenizer, text = loaded[name], json.dumps(value, ensure_ascii=False)
    matcher = compiled(JsonSchema({"const": value}), tokenizer).start_matcher()
    ids = run(matcher)
    assert text_of(tokenizer, ids) == text
    assert matcher.is_complete
    assert ids_of(matcher.pack_mask()) == [stop_id(tokenizer)]
    if "▁" not in text:  # SentencePiece cannot tell it from a space
        assert ids == tokenizer.encode(text, bos=False)


def test_forced_ids_leave_the_last_piece_open_where_it_may_grow(loaded):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    matcher = compiled(JsonSchema(schema), loaded["v1"]).start_matcher()
    assert text_of(loaded["v1"], run(matcher)) == '{"city":'
    starts = {loaded["v1"].piece(token) for token in ids_of(matcher.pack_mask())}
    assert {'▁"', '▁"$', '▁"/'} <= starts


@pytest.mark.parametrize("name", NAMES)
def test_answers_from_one_constraint_do_not_disturb_each_other(name, loaded, authors):
    constraint = compiled(JsonSchema(SCHEMAS["weather"]), loaded[name])
    first = constraint.start_matcher()
    mask = constraint.start_matcher().pack_mask()
    run(first)
    assert constraint.start_matcher().pack_mask() == mask != first.pack_mask()


@pytest.mark.parametrize("name", NAMES)
def test_ids_without_text_are_never_allowed(name, loaded):
    tokenizer = loaded[name]
    allowed = compiled(Regex("(?s:.*)"), tokenizer, continues=True).start_matcher().pack_mask()
    assert len(allowed) == -(-(tokenizer.vocab_size + EXTRA_IDS) // 32) * 4
    assert {token for token in ids_of(allowed) if tokenizer.is_control(token)} == {stop_id(tokenizer)}
    assert max(ids_of(allowed)) < tokenizer.vocab_size


def test_accepting_what_is_not_allowed_is_a_bug(loaded):
    tokenizer = loaded["v3"]
    constraint = compiled(Regex("a"), tokenizer, continues=True)
    for token in [*tokenizer.encode("b", bos=False), 5, stop_id(tokenizer), tokenizer.vocab_size + 1]:
        with pytest.raises(AssertionError, match=str(token)):
            constraint.start_matcher().accept(token)


def test_any_of_several_stop_ids_may_end_an_answer(loaded):
    tokenizer = loaded["v3"]
    stop_ids = frozenset({2, 3, 10**6})
    constraint = compile_constraint(
        Regex("a"), tokenizer, vocab_size=32768, stop_ids=stop_ids, continues=True
    )
    matcher = constraint.start_matcher()
    run(matcher)
    assert matcher.is_complete
    assert ids_of(matcher.pack_mask()).tolist() == [2, 3]
    matcher.accept(3)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(text=st.text())
def test_bytes_of_ids_join_to_the_text(name, loaded, text):
    tokenizer, table = loaded[name], tables(loaded)[name]
    ids = tokenizer.encode(text, bos=False)
    joined = b"".join(table[token] for token in ids).decode(errors="ignore")
    assume("\ufffd" not in tokenizer.decode(ids))  # the demo model lacks some bytes
    assert (joined[1:] if strips_space(tokenizer, table) and ids else joined) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=st.data())
def test_bytes_of_any_ids_that_join_to_text_are_what_they_decode_to(name, loaded, data):
    tokenizer, table = loaded[name], tables(loaded)[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=8))
    joined = b"".join(table[token] for token in ids)
    if joined == joined.decode(errors="ignore").encode():
        assert text_of(tokenizer, ids, continues=True) == joined.decode()


def tables(loaded, made={}):  # noqa: B006 - made once, for hypothesis calls hundreds of times
    return (
        made or made.update({name: list_token_bytes(tokenizer) for name, tokenizer in loaded.items()}) or made
    )


@pytest.mark.parametrize("name", ["v1", "v3", "demo"])
def test_every_id_of_text_has_bytes_and_every_byte_an_id(name, loaded):
    table = tables(loaded)[name]
    silent = {token for token, text in enumerate(table) if text == b""}
    assert silent == {token for token in range(len(table)) if loaded[name].is_control(token)}
    if name != "demo":  # which lacks some control characters
        assert {bytes([byte]) for byte in range(256)} <= {*table}


# What each keyword of draft 2020-12 comes to. Every schema below admits `good` and not `bad`.
ENFORCED = {
    "$ref": ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}}, ["null"], ["1"]),
    "$defs": ({"$defs": {"x": {"const": 1}}, "anyOf": [{"$ref": "#/$defs/x"}]}, ["1"], ["2"]),
    "type": ({"type": ["null", "integer"]}, ["null", "5"], ['"a"', "5.5", "true"]),
    "enum": ({"enum": ["a", 2.5, None]}, ['"a"', "2.5", "null"], ['"b"', "2"]),
    "const": ({"const": {"a": [1]}}, ['{"a": [1]}'], ['{"a": [2]}', "{}"]),
    "multipleOf": ({"type": "number", "multipleOf": 0.5}, ["1.5", "-2"], ["1.25"]),
    "maximum": ({"type": "number", "maximum": 2.5}, ["2.5", "-9"], ["2.6", "30"]),
    "exclusiveMaximum": ({"type": "number", "exclusiveMaximum": 1}, ["0.99"], ["1", "1.0", "0." + "9" * 20]),
    "minimum": ({"type": "integer", "minimum": 3}, ["3", "40"], ["2", "-4"]),
    "exclusiveMinimum": ({"type": "number", "exclusiveMinimum": 0}, ["0.1"], ["0", f"0.{'0' * 400}1", "-1"]),
    "maxLength": ({"type": "string", "maxLength": 2}, ['"😀\\n"', '""'], ['"abc"']),
    "minLength": ({"type": "string", "minLength": 2}, ['"ab"', '"😀😀"'], ['"a"', '"😀"', '"\\n"']),
    "pattern": ({"type": "string", "pattern": "^a.$|b"}, ['"ax"', '"xbx"'], ['"a"', '"axx"', '"\\u0062"']),
    "maxItems": ({"type": "array", "maxItems": 1}, ["[]", "[1]"], ["[1, 2]"]),
    "minItems": ({"type": "array", "minItems": 1}, ["[[]]"], ["[]"]),
    "items": ({"type": "array", "items": {"type": "null"}}, ["[null]", "[]"], ["[1]"]),
    "prefixItems": ({"type": "array", "prefixItems": [{"const": 1}]}, ["[1, 2]", "[]"], ["[2]"]),
    "maxProperties": ({"type": "object", "maxProperties": 1}, ['{"a": 1}', "{}"], ['{"a": 1, "b": 2}']),
    "minProperties": ({"type": "object", "minProperties": 1}, ['{"a": 1}'], ["{}"]),
    "required": ({"type": "object", "required": ["a"]}, ['{"a": 1}'], ["{}", '{"b": 1}']),
    "properties": ({"type": "object", "properties": {"a": {"const": 1}}}, ['{"a": 1}', "{}"], ['{"a": 2}']),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^x": {"const": 1}}, "additionalProperties": {"const": 2}},
        ['{"x1": 1, "y": 2}'],
        ['{"x1": 2}', '{"\\u0078": 2}', '{"y": 1}'],
    ),
    "additionalProperties": (
        {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
        ['{"a": 1}', "{}"],
        ['{"b": 1}', '{"\\u0061b": 1}'],
    ),
    "allOf": ({"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 3}]}, ["2", "3"], ["1", "4"]),
    "anyOf": ({"anyOf": [{"const": 1}, {"type": "string"}]}, ["1", '"a"'], ["2"]),
    "oneOf": ({"oneOf": [{"type": "null"}, {"type": "string"}]}, ["null", '"a"'], ["2"]),
    "format": (
        {"type": "string", "format": "date"},
        ['"2024-02-29"'],
        ['"2023-02-29"', '"2024-13-01"', '"x"'],
    ),
    "uniqueItems": (
        {"type": "array", "items": {"enum": [1, "a", None]}, "uniqueItems": True},
        ["[]", '["a", 1]', '[null, "a", 1]'],
        ["[1, 1]", "[1, 1.0]", '["a", null, "a"]'],
    ),
    "contains": (
        {"type": "array", "contains": {"const": 1}},
        ["[1]", "[2, [], 1, 2]", "[1, 1]"],
        ["[]", "[2]"],
    ),
    "minContains": (
        {"type": "array", "contains": {"type": "null"}, "minContains": 2},
        ["[null, 1, null]"],
        ["[null, 1]", "[]"],
    ),
    "maxContains": (
        {"type": "array", "contains": {"type": "null"}, "maxContains": 1},
        ["[1, null]", "[null]"],
        ["[null, 1, null]", "[]"],
    ),
    "dependentRequired": (
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        ['{"b": 1}', '{"b": 1, "a": 1}', "{}"],
        ['{"a": 1}', '{"a": 1, "c": 2}'],
    ),
    "dependentSchemas": (
        {"type": "object", "properties": {"a": {}}, "dependentSchemas": {"a": {"required": ["b"]}}},
        ['{"a": 1, "b": 2}', '{"c": 1}'],
        ['{"a": 1}'],
    ),
    "dependencies": (
        {"type": "object", "dependencies": {"a": ["b"]}, "dependentRequired": {"a": ["b"]}},
        ['{"b": 1}'],
        ['{"a": 1}'],
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": {"pattern": "^[a-c]+$", "maxLength": 2}},
        ['{"ab": 1}', "{}"],
        ['{"d": 1}', '{"abc": 1}', '{"": 1}'],
    ),
    "not": ({"not": {"type": ["string", "object", "array"]}}, ["1", "null", "true"], ['"a"', "{}", "[]"]),
    "if": (
        {
            "type": "object",
            "properties": {"a": {"type": "boolean"}},
            "if": {"properties": {"a": {"const": True}}, "required": ["a"]},
            "then": {"required": ["b"]},
            "else": {"properties": {"b": False}},
        },
        ['{"a": true, "b": 1}', '{"a": false}', "{}"],
        ['{"a": true}', '{"a": false, "b": 1}', '{"b": 1}'],
    ),
    "then": ({"if": {"type": "number"}, "then": {"minimum": 3}}, ["3", '"a"'], ["2"]),
    "else": ({"if": {"type": "number"}, "else": {"type": "null"}}, ["3", "null"], ['"a"']),
    "unevaluatedItems": (
        {"type": "array", "allOf": [{"prefixItems": [{"const": 1}]}], "unevaluatedItems": False},
        ["[1]", "[]"],
        ["[1, 2]", "[2]"],
    ),
    "unevaluatedProperties": (
        {"type": "object", "allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False},
        ['{"a": 1}', "{}"],
        ['{"a": 1, "b": 2}', '{"b": 2}'],
    ),
    "$anchor": ({"$defs": {"x": {"$anchor": "y", "const": 1}}, "$ref": "#y"}, ["1"], ["2"]),
    "$dynamicAnchor": ({"$defs": {"x": {"$dynamicAnchor": "y", "const": 1}}, "$ref": "#y"}, ["1"], ["2"]),
}
REFUSED = {"$dynamicRef": "#a", "$recursiveRef": "#"}
NOTES = {
    "$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": "c", "title": "t",
    "description": "d", "default": 1, "examples": [1], "deprecated": True, "readOnly": True,
    "writeOnly": True, "$vocabulary": {}, "contentEncoding": "base64", "contentMediaType": "text/html",
    "contentSchema": {}, "$recursiveAnchor": True, "nullable": True, "example": "x", "x-order": 1,
    "x-guidance": {"lenient": True}, "format": "int32", "discriminator": {"propertyName": "a"}, "foo": [],
}  # fmt: skip


def admits(schema, text, tokenizer):
    return follows(JsonSchema(schema), text, tokenizer)


def follows(grammar, text, tokenizer):
    matcher = compiled(grammar, tokenizer, continues=True).start_matcher()
    before = tokenizer.encode("\n", bos=False)
    try:
        for token in tokenizer.encode("\n" + text, bos=False)[len(before) :]:
            matcher.accept(token)
        matcher.accept(stop_id(tokenizer))
    except AssertionError:
        return False
    return True


def is_valid(schema, text):
    try:
        assert_valid(text, schema)
    except jsonschema.ValidationError:
        return False
    return True


def test_every_keyword_of_the_draft_has_been_thought_of():
    places = ("core", "applicator", "unevaluated", "validation", "meta-data", "format-annotation", "content")
    draft = "https://json-schema.org/draft/2020-12/meta/"
    named = {
        key
        for place in places
        for key in jsonschema_specifications.REGISTRY.contents(draft + place)["properties"]
    }
    assert named - {"$id"} <= {*ENFORCED, *REFUSED, *NOTES}


@pytest.mark.parametrize(("schema", "good", "bad"), ENFORCED.values(), ids=ENFORCED)
def test_keyword_is_enforced_as_jsonschema_reads_it(schema, good, bad, loaded):
    assert [
        text for text in good if not (is_valid(schema, text) and admits(schema, text, loaded["v1"]))
    ] == []
    assert [text for text in bad if admits(schema, text, loaded["v1"])] == []


@pytest.mark.parametrize(("keyword", "value"), REFUSED.items(), ids=REFUSED)
@pytest.mark.parametrize("nest", [lambda s: s, lambda s: {"properties": {"p": {"items": {"anyOf": [s]}}}}])
def test_keyword_that_is_not_enforced_is_refused_by_name(keyword, value, nest, loaded):
    with pytest.raises(UsageError, match=re.escape(repr(keyword))):
        compiled(JsonSchema(nest({"type": "object", keyword: value})), loaded["v1"])


@pytest.mark.parametrize(("keyword", "value"), NOTES.items(), ids=NOTES)
def test_annotation_changes_nothing(keyword, value, loaded):
    assert admits({"const": 1, keyword: value}, "1", loaded["v1"])
    assert not admits({"const": 1, keyword: value}, "2", loaded["v1"])


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"properties": {"a": {"uniqueItems": True}}}, "'uniqueItems'.*#/properties/a/uniqueItems"),
        ({"items": {"$dynamicRef": "#a"}}, r"'\$dynamicRef'.*#/items"),
        ({"not": {"patternProperties": {"a": {"type": "null"}}}}, "'patternProperties'.*#/not"),
        ({"minProperties": 40}, "minProperties"),
        ({"type": "foo"}, '#/type is "foo"'),
        ({"exclusiveMinimum": True, "minimum": 1}, "#/exclusiveMinimum is true"),  # of older drafts
        ({"multipleOf": -2}, "#/multipleOf is -2"),
        ({"minLength": -1}, "#/minLength is -1"),
        ({"minLength": 1.5}, "#/minLength is 1.5"),
        ({"required": "a"}, "#/required"),
        ({"properties": []}, "#/properties"),
        ({"properties": {"a": 5}}, "#/properties/a is 5"),
        ({"pattern": 5}, "#/pattern is 5"),
        ({"anyOf": []}, "#/anyOf"),
        ({"const": "\ud800"}, "not JSON.*surrogates"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": {1}}, "not JSON"),
        ([], r"# is \[\]"),
        ({"$ref": "http://example.com/x"}, r"#/\$ref is .*example"),
        ({"$ref": "other.json#/a"}, r"#/\$ref"),
        ({"$ref": "#name"}, r"#/\$ref"),
        (
            {"oneOf": [{"additionalProperties": False}, {"additionalProperties": {"type": "null"}}]},
            "'oneOf'.*options may hold together",
        ),
        ({"$ref": "#/$defs/x"}, "#/[$]defs/x, where there is no schema"),
        ({"$ref": "#/const/a", "const": {"a": {}}}, "no schema"),
        ({"pattern": "(?<=a)b"}, "lookarounds not supported"),
        ({"pattern": "(a(?=b))*"}, "repeats a look-ahead"),
        ({"pattern": "a("}, r"a \) is missing"),
        ({"pattern": r"(a)\1"}, "backreferences"),
        ({"pattern": r"\bfoo"}, "lookarounds not supported"),
        ({"type": "number", "multipleOf": 3.14159265358979}, "multipleOf"),
    ],
    ids=str,
)
def test_schema_that_cannot_be_enforced_is_refused_by_what_is_wrong(schema, named, loaded):
    with pytest.raises(UsageError, match=named):
        compiled(JsonSchema(schema), loaded["v1"])


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"enum": []},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "integer", "multipleOf": 10, "minimum": 1, "maximum": 9},
        {"type": "string", "pattern": "^a$", "minLength": 3},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"allOf": [{"type": "null"}, {"type": "string"}]},
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 2},
        {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        {"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
    ],
    ids=str,
)  # fmt: skip
def test_schema_that_nothing_satisfies_is_refused(schema, loaded):
    with pytest.raises(UsageError, match=r"[Uu]nsatisfiable|nothing satisfies"):
        compiled(JsonSchema(schema), loaded["v1"])


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HEAVY = {
    "deep": JsonSchema(nested(100_000)),
    "long": JsonSchema({"enum": [f"value {n}" for n in range(10_000)]}),
    "cross product": JsonSchema(
        {"allOf": [{"anyOf": [{"properties": {f"{i}{k}": {}}} for k in range(4)]} for i in range(8)]}
    ),
    "multiples": JsonSchema({"type": "integer", "multipleOf": 987654321}),
    "long pattern": Regex("a" * 200_000),
    "long grammar": Lark("start: " + "x " * 100_000),
    "syntax": Lark('start: "x" ('),
    "no start": Lark('root: "x"'),
    "gbnf": Lark('root ::= "x"'),
    "unknown name": Lark("start: foo"),
    "loop": Lark("start: start"),
    "json inside": Lark('start: %json {"foo": 1}'),
    "control id": Lark('start: <[5]> "x"'),
    "empty": Lark(""),
    "bad pattern": Regex("a("),
    "unicode": Regex("\ud800"),
}


@pytest.mark.parametrize("name", ["v1", "demo"])
@pytest.mark.parametrize("grammar", HEAVY.values(), ids=HEAVY)
def test_grammar_that_is_wrong_or_too_large_is_refused_in_a_moment(grammar, name, loaded):
    compiled(Regex("a"), loaded[name])  # the vocabulary is not what is timed
    begin = time.process_time()
    with pytest.raises(UsageError) as refusal:
        compiled(grammar, loaded[name])
    assert time.process_time() - begin < 2
    assert "\n" not in str(refusal.value)


CATASTROPHES = [
    "(a*)*b",
    "(a|aa)+c",
    "^(a|b)*a(a|b){30}c$",
    "(x+x+)+y",
    "([a-z]+ )*[a-z]+!",
    "[a-z]{1,100000}",
]


@pytest.mark.parametrize("pattern", CATASTROPHES)
def test_pattern_that_would_hang_a_backtracker_does_not(pattern, loaded, authors):
    begin = time.process_time()
    matcher = compiled(Regex(pattern), loaded["v1"]).start_matcher()
    try:
        authors["v1"].write(matcher)
    except UsageError as error:
        assert "too complex" in str(error)  # noqa: PT017 - either is right, a hang is not
    assert time.process_time() - begin < 10


@pytest.mark.parametrize(
    ("text", "is_admitted"),
    [
        ("Sunny, I think.", True),
        (" two\nlines [1]", True),
        ('[{"name": "f", "arguments": {}}]', True),
        ('[{"name": "g", "arguments": {}}]', False),
        (' [{"name": "g", "arguments": {}}]', False),
        ("\n[1]", True),
        (" [{1}]", False),
    ],
)
@pytest.mark.parametrize("name", ["v3", "demo"])
def test_calls_or_text_admits_no_other_list_behind_blanks(text, is_admitted, name, loaded):
    """A blank in front once made any list text."""
    tools = {"f": {"type": "object", "additionalProperties": False}}
    form = replace(MISTRAL, opening=('[{"name": "',))
    assert follows(Calls(form, tools, {}, Place.BESIDE_TEXT), text, loaded[name]) is is_admitted


def test_answer_without_a_stop_id_is_refused(loaded):
    with pytest.raises(UsageError, match="stop id"):
        compile_constraint(Regex("a"), loaded["v1"], vocab_size=32000, stop_ids=frozenset(), continues=False)
