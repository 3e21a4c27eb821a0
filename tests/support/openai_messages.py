"""Draws conversations and tools as the types of OpenAI's clients allow them."""

import json
import string

from hypothesis import strategies as st

_TEXTS = st.text(st.characters(max_codepoint=0x3FFF, exclude_categories=["Cs"]), max_size=8)
_SOME_TEXT = _TEXTS.map("x{}".format)
_NAMES = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=9)
_IDS = st.text(string.ascii_letters + string.digits, min_size=9, max_size=24)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | _TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXTS, inner, max_size=2),
    max_leaves=4,
)
_ARGUMENTS = st.dictionaries(_NAMES, _JSON, max_size=2)
_NOTHING = st.fixed_dictionaries({}, optional={"name": _NAMES})
_NOTHING_SAID = st.fixed_dictionaries(
    {},
    optional={
        "name": _NAMES, "refusal": st.none(), "annotations": st.just([]), "audio": st.none(),
        "function_call": st.none(), "tool_calls": st.none(),
    },
)  # fmt: skip
_BREAKPOINT = st.fixed_dictionaries({}, optional={"prompt_cache_breakpoint": st.just({"mode": "explicit"})})


def _in_parts(text):
    part = st.builds(lambda said, more: {"type": "text", "text": said} | more, text, _BREAKPOINT)
    return text | st.lists(part, min_size=1, max_size=3)


def _say(role, text, more):
    message = st.builds(
        lambda content, extra: {"role": role, "content": content} | extra, _in_parts(text), more
    )
    return message.map(lambda said: [said])


@st.composite
def _call_tools(draw):
    """A message with calls, and their results."""
    ids = draw(st.lists(_IDS, min_size=1, max_size=2, unique_by=lambda short: short[-9:]))
    prefix = draw(st.sampled_from(["call_", "", "chatcmpl-tool-"]))
    calls = []
    for at, short in enumerate(ids):
        arguments = draw(_ARGUMENTS)
        function = {
            "name": draw(_NAMES),
            "arguments": draw(st.sampled_from([arguments, json.dumps(arguments)])),
        }
        call = {"id": prefix + short, "type": "function", "function": function}
        calls.append(call | draw(st.sampled_from([{}, {"index": at}])))
    answer = {"role": "assistant", "content": draw(st.none() | st.just("")), "tool_calls": calls}
    extra = {name: value for name, value in draw(_NOTHING_SAID).items() if name != "tool_calls"}
    results = [
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": draw(_in_parts(_TEXTS | _JSON.map(json.dumps))),
        }
        for call in calls
    ]
    return [answer | extra, *results]


@st.composite
def conversations(draw):
    """A conversation that the model is to answer."""
    role = draw(st.sampled_from(["system", "developer"]))
    messages = draw(st.just([]) | _say(role, _TEXTS, _NOTHING))
    messages += draw(_say("user", _TEXTS, _NOTHING))
    for _ in range(draw(st.integers(0, 2))):
        messages += draw(_call_tools() | st.just([]))
        messages += draw(_say("assistant", _SOME_TEXT, _NOTHING_SAID))
        messages += draw(_say("user", _TEXTS, _NOTHING))
    return messages + draw(_call_tools() | st.just([]))


_PARAMETERS = st.just({"type": "object", "properties": {"a": {"type": "integer"}}})
_FUNCTIONS = st.fixed_dictionaries(
    {"name": _NAMES},
    optional={"description": _TEXTS, "parameters": _PARAMETERS, "strict": st.none() | st.booleans()},
)
TOOLS = st.none() | st.lists(
    _FUNCTIONS.map(lambda f: {"type": "function", "function": f}), min_size=1, max_size=2
)
