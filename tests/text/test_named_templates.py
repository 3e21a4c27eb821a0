"""Templates with names: the one for tools is used when tools are offered. The oracle is transformers."""

import json
import re

import pytest
from transformers import AutoTokenizer

from m7b.errors import UsageError
from m7b.models import ModelChoice, load_chosen_template
from m7b.offer import check_template
from m7b.runtime.checkpoints import open_checkpoint
from m7b.templates import MistralTemplate, choose_template
from m7b.tokenizer import OfficialVocabulary, load_tokenizer
from m7b.variants import TokenizerVersion
from tests.support.tiny import assert_refused, call
from tests.support.tuned import CHATML, write_tuned, write_tuned_gguf

TOOL_USE = "Tools: {% for tool in tools %}{{ tool|tojson }}{% endfor %}" + CHATML
RAG = "{{ documents }}" + CHATML
NAMED = {"default": CHATML, "tool_use": TOOL_USE, "rag": RAG}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "looks up",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
MESSAGES = [{"role": "user", "content": "hi"}]
TOKENS = ["<|im_end|>", "<|im_start|>"]


def as_list(folder):
    """As transformers wrote them until 2025."""
    listed = [{"name": name, "template": text} for name, text in NAMED.items()]
    write_tuned(folder, TOKENS, chat_template=listed)


def as_files(folder):
    """As it writes them since, beside a field that is left from before."""
    write_tuned(folder, TOKENS, chat_template="old")
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(NAMED[name])


LAYOUTS = {"list": as_list, "files": as_files}


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_template_is_the_one_that_transformers_chooses(layout, tools, tmp_path):
    """`tool_use` was never read: tools were refused, or left out without a word."""
    LAYOUTS[layout](tmp_path)
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    wanted = oracle.apply_chat_template(MESSAGES, tools, add_generation_prompt=True, tokenize=False)
    tokenizer, template = load_chosen_template(ModelChoice(path=tmp_path), None)
    written = "".join(map(tokenizer.piece, template.encode(MESSAGES, tools)))
    assert re.sub("<0x0A>|▁", "", written) == "<s>" + re.sub(r"\s", "", wanted)


def test_names_of_a_file_are_read(tmp_path):
    keys = {"default": "tokenizer.chat_template"}
    metadata = {keys.get(name, f"tokenizer.chat_template.{name}"): text for name, text in NAMED.items()}
    file = write_tuned_gguf(tmp_path / "m.gguf", TOKENS, **metadata)
    assert open_checkpoint(file).chat_templates == NAMED


def test_old_file_counts_where_nothing_else_is_default(tmp_path):
    write_tuned(tmp_path, TOKENS)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL_USE)
    assert open_checkpoint(tmp_path).chat_templates == {"default": CHATML, "tool_use": TOOL_USE}


@pytest.mark.parametrize("target", ["f16", "int8"])
def test_templates_are_kept_when_a_model_is_quantized(target, tmp_path):
    pytest.importorskip("bitsandbytes") if target == "int8" else None
    as_files(tmp_path / "m")
    ran = call(
        "quantize",
        tmp_path / "m",
        "-o",
        tmp_path / f"out{'.gguf' if target == 'f16' else ''}",
        "--to",
        target,
    )
    assert ran.code == 0, ran.err
    made = tmp_path / ("out.gguf" if target == "f16" else "out")
    assert open_checkpoint(made).chat_templates == NAMED


def tokenized(folder, tools):
    messages = json.dumps({"messages": MESSAGES, "tools": tools})
    return call("tokenize", "--chat", "--json", "-m", folder, stdin=messages)


def test_tokenize_shows_tools(tmp_path):
    as_list(tmp_path)
    assert '"look_up"' in tokenized(tmp_path, [TOOL]).answer["text"]
    assert '"look_up"' not in tokenized(tmp_path, None).answer["text"]


def test_tools_that_a_template_has_no_place_for_are_refused(tmp_path):
    """`tokenize --chat` left them out without a word."""
    write_tuned(tmp_path, TOKENS, chat_template=CHATML)
    assert_refused(tokenized(tmp_path, [TOOL]), 2, "no place for tools")
    line = json.dumps({"id": 1, "messages": MESSAGES, "tools": [TOOL]}) + "\n"
    ran = call("tokenize", "--chat", "-m", tmp_path, "--jsonl", "-", stdin=line)
    assert "no place for tools" in ran.answer["error"]["message"]


def test_template_for_tools_alone_says_so(tmp_path):
    write_tuned(tmp_path, TOKENS, chat_template=[{"name": "tool_use", "template": TOOL_USE}])
    assert tokenized(tmp_path, [TOOL]).code == 0
    assert_refused(tokenized(tmp_path, None), 2, "tools alone", "--chat-template")


def test_templates_for_special_uses_are_named(tmp_path):
    """They were there, and the message said that there is none."""
    write_tuned(tmp_path, TOKENS, chat_template=[{"name": "rag", "template": RAG}])
    ran = call("complete", "--chat", "-m", tmp_path, "hi")
    assert (ran.code, "rag" in ran.err, "brings no chat template" in ran.err) == (2, True, True)
    assert_refused(tokenized(tmp_path, None), 2, "rag", "--chat-template")


# Mistral's own

ALIGNED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)
WITH_TOOLS = ALIGNED.replace("{{ bos_token }}", "{{ bos_token }}{% if tools %}{{ tools|tojson }}{% endif %}")


@pytest.mark.parametrize(
    ("version", "source", "tool_source", "is_own"),
    [
        ("v3", ALIGNED, WITH_TOOLS, True),
        ("v3", WITH_TOOLS, None, True),
        ("v1", ALIGNED, None, True),
        ("v1", ALIGNED, WITH_TOOLS, False),
        ("v1", WITH_TOOLS, None, False),
        ("v1", ALIGNED, TOOL_USE, False),
    ],
)
def test_mistral_common_runs_where_it_has_a_place_for_the_tools(version, source, tool_source, is_own):
    """With tokenizer v1 it left out the tools that the checkpoint's own template shows."""
    tokenizer = load_tokenizer(OfficialVocabulary(TokenizerVersion(version)))
    template = choose_template(source, tokenizer, "</s>", tool_source=tool_source)
    assert isinstance(template, MistralTemplate) is is_own
    assert template.encode(MESSAGES) == MistralTemplate(tokenizer).encode(MESSAGES)
    if not is_own or version == "v3":
        check_template(template)
    else:
        with pytest.raises(UsageError, match="no place"):
            check_template(template)
