"""Chat templates of our own that write calls in the forms of public ones."""

_CHATML = """\
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif -%}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.content %}{{ m.content }}{% endif %}{% if m.tool_calls %}CALLS{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_chatml(calls: str) -> str:
    """Write a template of ChatML that writes calls as the Jinja text `calls` does."""
    return _CHATML.replace("CALLS", calls)


def _each(text: str, between: str = "") -> str:
    """Write `text` for every call `f`, which has a name and arguments."""
    joint = "{% if not loop.last %}" + between + "{% endif %}" if between else ""
    return "{% for c in m.tool_calls %}{% set f = c.function %}" + text + joint + "{% endfor %}"


_NAMED = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
_PARAMETERS = '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'

CALL_TEMPLATES = {
    "hermes": write_chatml(_each("{{ '\\n' }}<tool_call>\n" + _NAMED + "\n</tool_call>")),
    "tags in a row": write_chatml(_each("<tool_call>" + _NAMED + "</tool_call>")),
    "list in tags": write_chatml("<tool_calls>[" + _each(_NAMED, ", ") + "]</tool_calls>"),
    "lines in tags": write_chatml("<tool_calls>\n" + _each(_NAMED + "\n") + "</tool_calls>"),
    "phi": write_chatml("<|tool_call|>[" + _each(_NAMED, ", ") + "]<|/tool_call|>"),
    "functools": write_chatml(" functools[" + _each(_NAMED, ", ") + "]"),
    "function tags": write_chatml(_each("<function={{ f.name }}>{{ f.arguments | tojson }}</function>")),
    "python tag": write_chatml("<|python_tag|>" + _each(_PARAMETERS, "; ")),
    "name and arguments": write_chatml(_each("[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}")),
    "ids behind": write_chatml("[TOOL_CALLS][" + _each(_NAMED[:-1] + ', "id": "{{ c.id }}"}', ", ") + "]"),
    "numbers": write_chatml(
        "<|calls|>"
        + _each("<|call|>functions.{{ f.name }}:{{ loop.index0 }}<|args|>{{ f.arguments | tojson }}<|end|>")
        + "<|/calls|>"
    ),
    "name as key": write_chatml(
        "<|tools|>[" + _each('{"{{ f.name }}": {{ f.arguments | tojson }}}', ", ") + "]<|/tools|>"
    ),
    "indented": write_chatml(
        "Action:\n```json\n["
        + _each(
            '{{ "\\n" }}    {\n        "tool_name": "{{ f.name }}",\n'
            '        "parameters": {{ f.arguments | tojson }}\n    }',
            ",",
        )
        + "\n]```"
    ),
    "openai": write_chatml("{{ m.tool_calls | tojson }}"),
    "fenced": write_chatml(
        "<|calls|>"
        + _each("<|call|>{{ f.name }}\n```json\n{{ f.arguments | tojson }}\n```<|end|>", "{{ '\\n' }}")
        + "<|/calls|>"
    ),
}
"""By the shape of their calls; each may hold several."""

LLAMA = """\
{%- for m in messages %}{%- if m.tool_calls %}\
{%- if m.tool_calls | length > 1 %}{{ raise_exception("one call") }}{%- endif %}\
{%- set f = m.tool_calls[0].function %}<|start|>assistant

{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|eot_id|>
{%- else %}<|start|>{{ m.role }}

{% if loop.first and tools %}Tools: {{ tools | tojson }}
{% endif %}{{ m.content }}<|eot_id|>{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant

{% endif %}"""
"""Bare JSON, one call alone."""

MARKUP = write_chatml(
    _each(
        "<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n"
        "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
    )
)
"""Calls whose arguments are no JSON object."""
