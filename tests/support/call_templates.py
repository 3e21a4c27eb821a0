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


def _each_pair(text: str, between: str = "") -> str:
    """Write `text` for every argument `k`, whose value is `v`."""
    joint = "{% if not loop.last %}" + between + "{% endif %}" if between else ""
    return "{% for k, v in f.arguments | items %}" + text + joint + "{% endfor %}"


_PLAIN = "{{ v if v is string else v | tojson }}"

PAIR_TEMPLATES = {
    "parameters": write_chatml(
        _each(
            "{{ '\\n' }}<tool_call>\n<function={{ f.name }}>\n"
            + _each_pair("<parameter={{ k }}>\n" + _PLAIN + "\n</parameter>\n")
            + "</function>\n</tool_call>"
        )
    ),
    "keys and values": write_chatml(
        _each(
            "<tool_call>{{ f.name }}\n"
            + _each_pair("<arg_key>{{ k }}</arg_key>\n<arg_value>" + _PLAIN + "</arg_value>\n")
            + "</tool_call>"
        )
    ),
    "typed": write_chatml(
        "<calls>\n"
        + _each(
            '<invoke name="{{ f.name }}">\n'
            + _each_pair(
                '<parameter name="{{ k }}" string="{{ (v is string) | tojson }}">' + _PLAIN + "</parameter>\n"
            )
            + "</invoke>\n"
        )
        + "</calls>"
    ),
    "python": write_chatml(
        "<|calls|>["
        + _each(
            "{{ f.name }}("
            + _each_pair(
                "{{ k }}={% if v is string %}'{{ v }}'{% elif v is boolean or v is none %}{{ v }}"
                "{% else %}{{ v | tojson }}{% endif %}",
                ", ",
            )
            + ")",
            ", ",
        )
        + "]<|/calls|>"
    ),
    "quoted python": write_chatml(
        "<|calls|>["
        + _each("{{ f.name }}(" + _each_pair("{{ k }}={{ v | tojson }}", ", ") + ")", ", ")
        + "]<|/calls|>"
    ),
}
"""Calls whose arguments are written one by one."""

NESTED = write_chatml(
    _each("<call={{ f.name }}>" + _each_pair("<{{ k }}>" + _PLAIN + "</{{ k }}>") + "</call>")
)
"""Calls whose arguments are written in a form that is not known: a name on both sides."""
