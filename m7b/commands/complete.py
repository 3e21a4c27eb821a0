"""`m7b complete`: continue a prompt."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from m7b.commands.shared.answering import Asked, ServerOption, VerboseOption, answer, tell_unasked
from m7b.commands.shared.expansion import expand_options, flag
from m7b.commands.shared.grammar_options import GrammarOptions
from m7b.commands.shared.loading import load_model, open_prompt_cache
from m7b.commands.shared.options import (
    ChatTemplateOption,
    JsonOption,
    KeepNewlineOption,
    ModelOption,
    OfflineOption,
    PromptCacheOption,
    VariantOption,
    count,
    integer,
    is_flag,
)
from m7b.commands.shared.progress import BatchStatus, PromptStatus
from m7b.commands.shared.prompt import read_parts, read_prompt, tell_left_out
from m7b.commands.shared.scaling import RayOptions, answer_by_ray
from m7b.commands.shared.tool_options import ConstrainOption, ToolOptions, note_left_out_tools
from m7b.completions import (
    ChatPrompt,
    CompletionRequest,
    LocalAnswer,
    Remarks,
    RequestFile,
    Together,
    find_remarks,
    is_conversation,
    parse_chat_prompt,
)
from m7b.errors import UsageError
from m7b.generation import CallDelta, EngineOptions, GenerationEvent, SamplingParams, TextDelta
from m7b.models import Model, ModelChoice, refuse_base
from m7b.options import list_options
from m7b.render import Output, note
from m7b.warm.client import WarmAnswer


@expand_options
def complete(
    ctx: typer.Context,
    *,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The text to continue, behind what a pipe brings; - is stdin.", show_default=False
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "-f",
            "--file",
            help="Read the prompt from a file; - is stdin; can be repeated.",
            show_default=False,
        ),
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
    scale: RayOptions,
    variant: VariantOption = None,
    model: ModelOption = None,
    sampling: SamplingParams,
    grammar: GrammarOptions,
    tools: ToolOptions,
    constrain: ConstrainOption = True,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before its continuation.")] = False,
    special: Annotated[
        bool, typer.Option("--special", help="Let names of control tokens in the prompt stand for these.")
    ] = False,
    num_samples: Annotated[
        int,
        typer.Option("-N", "--num-samples", parser=integer, metavar="N", help="How many continuations."),
    ] = 1,
    logprobs: Annotated[int | None, flag(list_options(SamplingParams)["logprobs"])] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it comes.")] = True,
    as_json: JsonOption = False,
    engine: EngineOptions,
    prompt_cache: PromptCacheOption = None,
    server: ServerOption = "auto",
    verbose: VerboseOption = False,
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
    offered = tools.describe(constrain=constrain)
    request = CompletionRequest(
        "",
        sampling,
        num_samples,
        echo,
        conversation=ChatPrompt([], offered) if offered else None,
        grammar=keep_to,
        tool_choice=tools.tool_choice,
        constrains_calls=constrain,
        special=special,
    )
    choice = ModelChoice(variant, model)
    if chat and special:
        raise UsageError("--special goes with a prompt, and --chat has the template write control tokens")
    if chat:
        refuse_base(choice, chat_template)
    if parallel and not jsonl:
        raise UsageError("--parallel goes with --jsonl")
    if jsonl and is_flag(ctx, "prompt_cache"):
        raise UsageError("--prompt-cache goes with one prompt", hint="--jsonl reads a common beginning once")
    kept = None if jsonl else open_prompt_cache(prompt_cache)
    asked = Asked(choice, engine, chat_template, server, verbose, kept)
    scale.check(jsonl, output)
    if scale.ray and jsonl and output:
        tell_unasked(asked, "a file of requests")
        _refuse_prompt(has_prompt=bool(prompt is not None or file))
        how = {"is_chat": chat, "parallel": parallel, "chat_template": chat_template}
        answer_by_ray(
            scale, jsonl, output, choice, engine, note_left_out_tools(request), resume=resume, **how
        )
        return
    batch = _open_batch(jsonl, output, resume=resume, has_prompt=bool(prompt is not None or file))
    if batch is None:
        read = _read_conversation if chat else _read_prompt
        request = read(request, prompt, file or [], keep_newline=keep_newline)
    request = note_left_out_tools(request)

    def load() -> Model:
        return load_model(choice, engine, chat_template=chat_template)

    if batch:
        tell_unasked(asked, "a file of requests")
        loaded = load()
        conversation = request.conversation or (ChatPrompt([]) if chat else None)
        _tell(find_remarks(loaded, replace(request, conversation=conversation)))
        _answer_batch(batch, loaded, request, is_chat=chat, parallel=parallel)
        return
    answering = answer(asked, request, load, is_whole=as_json)
    _tell(answering.remarks)
    if as_json:
        _run_silently(answering)
        Output().write_json(answering.format())
    else:
        _print(answering, streaming=stream)


def _run_silently(answering: LocalAnswer | WarmAnswer) -> None:
    """Run an answer to its end, showing nothing but how far the prompt is read."""
    with PromptStatus() as status:
        for events in answering.samples():
            for event in events:
                status.show(event)


def _answer_batch(
    batch: RequestFile, model: Model, defaults: CompletionRequest, *, is_chat: bool, parallel: int | None
) -> None:
    """Answer all lines, `parallel` at once; on a terminal, tell how far it is."""
    n_tokens = defaults.params.max_tokens + EngineOptions().prefill_chunk
    at_once = parallel or model.engine.suggest_parallel(n_tokens)
    with BatchStatus(batch.count_left(), None if parallel else at_once) as status:
        together = Together(model, defaults, is_chat=is_chat, parallel=at_once, report=status.show)
        try:
            batch.run_together(together.answer)
        finally:
            if n := together.n_shortened:
                note(f"parts of {n} requests are left out: the template has no place for them")
            if n := together.n_without_tools:
                note(f"tools of {n} requests are left out: `left_out` in their answers says why")


def _open_batch(
    jsonl: Path | None, output: Path | None, *, resume: bool, has_prompt: bool
) -> RequestFile | None:
    """The requests in the file `jsonl`, None where it is not given.

    Raises:
        UsageError: a prompt is given beside it, or options that go with it are given without it.
    """
    if jsonl is None:
        if output or resume:
            raise UsageError("--output and --resume go with --jsonl")
        return None
    _refuse_prompt(has_prompt=has_prompt)
    return RequestFile(jsonl, output, resume=resume)


def _refuse_prompt(*, has_prompt: bool) -> None:
    if has_prompt:
        raise UsageError("--jsonl brings its own prompts", hint="leave out PROMPT and --file")


def _tell(remarks: Remarks) -> None:
    """Tell what is to be known before the answer; of control tokens that are text, on a terminal alone."""
    if remarks.form:
        note(remarks.form)
    if remarks.controls and sys.stderr is not None and sys.stderr.isatty():
        names = ", ".join(remarks.controls[:5])
        note(f"{names} in the prompt is text; --special writes control tokens, --chat messages")
    tell_left_out(remarks.left_out)


def _read_prompt(
    request: CompletionRequest, prompt: str | None, files: list[Path], *, keep_newline: bool
) -> CompletionRequest:
    """The request with its prompt."""
    return replace(request, prompt=read_prompt(prompt, files, keep_newline=keep_newline))


def _read_conversation(
    request: CompletionRequest, prompt: str | None, files: list[Path], *, keep_newline: bool
) -> CompletionRequest:
    """The request with its conversation, which keeps the tools on offer.

    Raises:
        UsageError: one of several parts is a conversation in JSON.
    """
    parts = list(filter(None, read_parts(prompt, files, keep_newline=keep_newline)))
    if len(parts) > 1 and any(map(is_conversation, parts)):
        raise UsageError(
            "messages in JSON and a prompt are both given", hint="put the prompt into the messages"
        )
    conversation = parse_chat_prompt("\n\n".join(parts), prompt_allowed=True)
    if request.conversation:
        conversation = replace(conversation, tools=request.conversation.tools)
    return replace(request, conversation=conversation)


def _print(answering: LocalAnswer | WarmAnswer, *, streaming: bool) -> None:
    """Show the samples as plain text, each followed by one newline."""
    output = Output()
    try:
        for events in answering.samples():
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
