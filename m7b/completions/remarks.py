"""What users are told of a request before its answer. Knows requests and templates; shows nothing."""

from dataclasses import dataclass

from m7b.completions.request import CompletionRequest
from m7b.models import Model
from m7b.offer import check_template, describe_form
from m7b.templates import list_left_out
from m7b.tokenizer import list_controls


@dataclass(frozen=True, slots=True)
class Remarks:
    """What users are told.

    Attributes:
        form: how calls are written, where the template does not show it.
        controls: names of control tokens that stand in the prompt as text.
        left_out: the places of what the template leaves out of the conversation.
    """

    form: str = ""
    controls: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def find_remarks(model: Model, request: CompletionRequest) -> Remarks:
    """Find what is to be told of a request that `model` is to answer.

    Raises:
        UsageError: it is a conversation, and the model cannot chat, or has no place for its tools.
    """
    chat = request.conversation
    if chat is None:
        is_text = isinstance(request.prompt, str) and not request.special
        return Remarks(controls=tuple(list_controls(model.tokenizer, str(request.prompt))) if is_text else ())
    template = model.chat_template
    if chat.tools:
        check_template(template)
    form = describe_form(template) if chat.tools else ""
    return Remarks(form, left_out=tuple(list_left_out(template, chat.messages)))
