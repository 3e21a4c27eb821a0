"""`m7b complete`: continue a prompt."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from m7b.commands.shared.expansion import expand_options, flag
from m7b.commands.shared.grammar_options import GrammarOptions
from m7b.commands.shared.loading import load_model
from m7b.commands.shared.options import (
    ChatTemplateOption,
    JsonOption,
    KeepNewlineOption,
    ModelOption,
    OfflineOption,
    VariantOption,
    count,
    integer,
    is_flag,
)
from m7b.commands.shared.progress import BatchStatus, PromptStatus
from m7b.commands.shared.prompt import read_prompt
from m7b.commands.shared.tool_options import ConstrainOption, ToolOptions, leave_out_tools
from m7b.completions import (
    ChatPrompt,
    Completion,
    CompletionRequest,
    RequestFile,
    Together,
    answer_request,
    parse_chat_prompt,
)
from m7b.errors import UsageError
from m7b.generation import CallDelta, EngineOptions, GenerationEvent, SamplingParams, TextDelta
from m7b.models import Model, ModelChoice, refuse_base, require_template
from m7b.options import list_options
from m7b.render import Output


@expand_options
def complete(
    ctx: typer.Context,
    *,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - or nothing reads stdin.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Read the prompt from a file.", show_default=False)
    ] = None,
    keep_newline: KeepNewlineOption = False,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Apply the chat template to the prompt, or to messages in JSON."),
    ] = False,
    chat_template: ChatTemplateOption = None,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            "--jsonl", help="Answer a file of JSON requests, one a line; - is stdin.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="With --jsonl: write the answers here.", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With -o: keep its answers and do the rest.")
    ] = False,
    parallel: Annotated[
        int | None,
        typer.Option(
            parser=count,
            metavar="N",
            help="With --jsonl: answer this many at once; as many as pay and fit if not given.",
            show_default=False,
        ),
    ] = None,
    variant: VariantOption = None,
    model: ModelOption = None,
    sampling: SamplingParams,
    grammar: GrammarOptions,
    tools: ToolOptions,
    constrain: ConstrainOption = True,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before its continuation.")] = False,
    num_samples: Annotated[
        int,
        typer.Option("-N", "--num-samples", parser=integer, metavar="N", help="How many continuations."),
    ] = 1,
    logprobs: Annotated[int | None, flag(list_options(SamplingParams)["logprobs"])] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it comes.")] = True,
    as_json: JsonOption = False,
    engine: EngineOptions,
    offline: OfflineOption = False,
) -> None:
    """Continue a text exactly as it stands, or with --chat answer it as a message.

    Examples:

      m7b complete "The capital of France is" -n 20

      m7b complete --json < prompt.txt
    """
    sampling = replace(sampling, logprobs=logprobs)
    if logprobs is not None and not as_json and not jsonl:
        raise UsageError("--logprobs prints nothing in plain text", hint="add --json")
    if is_flag(ctx, "chat_template") and not chat:
        raise UsageError("--chat-template goes with --chat")
    keep_to = grammar.read()
    if tools.are_given and not chat:
        raise UsageError("--tools and --mcp go with --chat")
    offered = tools.describe()
    request = CompletionRequest(
        "",
        sampling,
        num_samples,
        echo,
        conversation=ChatPrompt([], offered) if offered else None,
        grammar=keep_to,
        tool_choice=tools.tool_choice,
        constrains_calls=constrain,
    )
    choice = ModelChoice(variant, model)
    if chat:
        refuse_base(choice, chat_template)
    if parallel and not jsonl:
        raise UsageError("--parallel goes with --jsonl")
    batch = _open_batch(file if prompt is None else prompt, jsonl, output, resume=resume)
    if batch is None:
        request = _fill(request, read_prompt(prompt, file, keep_newline=keep_newline), is_chat=chat)
    request = leave_out_tools(request)
    loaded = load_model(choice, engine, chat_template=chat_template)
    if chat:
        require_template(loaded.name, loaded.template)
    if batch:
        _answer_batch(batch, loaded, request, is_chat=chat, parallel=parallel)
    elif as_json:
        Output().write_json(complete_silently(loaded, request))
    else:
        _print(Completion(loaded, request), streaming=stream)


def complete_silently(model: Model, request: CompletionRequest) -> dict[str, Any]:
    """The whole answer object of one request."""
    with PromptStatus() as status:
        return answer_request(model, request, status.show)


def _answer_batch(
    batch: RequestFile, model: Model, defaults: CompletionRequest, *, is_chat: bool, parallel: int | None
) -> None:
    """Answer all lines, `parallel` at once; on a terminal, tell how far it is."""
    n_tokens = defaults.params.max_tokens + EngineOptions().prefill_chunk
    at_once = parallel or model.engine.suggest_parallel(n_tokens)
    with BatchStatus(batch.count_left(), None if parallel else at_once) as status:
        together = Together(model, defaults, is_chat=is_chat, parallel=at_once, report=status.show)
        batch.run_together(together.answer)


def _open_batch(
    prompt: str | Path | None, jsonl: Path | None, output: Path | None, *, resume: bool
) -> RequestFile | None:
    """The requests in the file `jsonl`, None where it is not given.

    Raises:
        UsageError: a `prompt` is given beside it, or options that go with it are given without it.
    """
    if jsonl is None:
        if output or resume:
            raise UsageError("--output and --resume go with --jsonl")
        return None
    if prompt is not None:
        raise UsageError("--jsonl brings its own prompts", hint="leave out PROMPT and --file")
    return RequestFile(jsonl, output, resume=resume)


def _fill(request: CompletionRequest, text: str, *, is_chat: bool) -> CompletionRequest:
    """The request with `text` as its prompt, or as its conversation, to which the tools on offer are kept."""
    if not is_chat:
        return replace(request, prompt=text)
    conversation = parse_chat_prompt(text, prompt_allowed=True)
    if request.conversation:
        conversation = replace(conversation, tools=request.conversation.tools)
    return replace(request, conversation=conversation)


def _print(completion: Completion, *, streaming: bool) -> None:
    """Show the samples as plain text, each followed by one newline."""
    output = Output()
    try:
        for events in completion.samples():
            with PromptStatus() as status:
                texts = select_text(status.watch(events))
                for text in texts if streaming else ["".join(texts)]:
                    output.write(text)
            output.write("\n")
    except KeyboardInterrupt:
        if output.is_terminal:
            output.write("\n")
        raise


def select_text(events: Iterator[GenerationEvent]) -> Iterator[str]:
    """The text of an answer, or that of its calls. Calls that turn out to be text are told again as such."""
    is_of_calls = False
    for event in events:
        is_of_calls = is_of_calls or isinstance(event, CallDelta)
        if isinstance(event, CallDelta if is_of_calls else TextDelta):
            yield event.text
