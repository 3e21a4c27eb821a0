"""`m7b complete`: continue a prompt."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from m7b.commands.shared.grammar_options import (
    AnswerFormat,
    FormatOption,
    GrammarOption,
    JsonSchemaOption,
    RegexOption,
    grammar_of,
)
from m7b.commands.shared.loading import load_model
from m7b.commands.shared.options import (
    ChatTemplateOption,
    CtxSizeOption,
    DeviceOption,
    DTypeOption,
    JsonOption,
    KeepNewlineOption,
    ModelOption,
    OfflineOption,
    PrefillChunkOption,
    QuantOption,
    ThreadsOption,
    VariantOption,
    WindowOption,
    integer,
    is_flag,
)
from m7b.commands.shared.progress import PromptStatus
from m7b.commands.shared.prompt import read_prompt
from m7b.commands.shared.sampling_options import (
    FrequencyPenaltyOption,
    LogitBiasOption,
    MaxTokensOption,
    MinPOption,
    PresencePenaltyOption,
    RepeatLastNOption,
    RepetitionPenaltyOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TypicalPOption,
    logit_bias_of,
)
from m7b.commands.shared.tool_options import ConstrainOption, McpOption, ToolChoiceOption, ToolsOption, fill
from m7b.completions import (
    Batch,
    ChatPrompt,
    Completion,
    CompletionRequest,
    answer_request,
    parse_chat_prompt,
    parse_request,
)
from m7b.errors import UsageError
from m7b.generation import CallDelta, EngineOptions, GenerationEvent, SamplingParams, TextDelta
from m7b.models import Model, ModelChoice, refuse_base, require_template
from m7b.render import Output
from m7b.tools import Toolbox


def complete(
    ctx: typer.Context,
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
    variant: VariantOption = None,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    typical_p: TypicalPOption = 1.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    presence_penalty: PresencePenaltyOption = 0.0,
    frequency_penalty: FrequencyPenaltyOption = 0.0,
    repeat_last_n: RepeatLastNOption = -1,
    logit_bias: LogitBiasOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    json_schema: JsonSchemaOption = None,
    answer_format: FormatOption = AnswerFormat.TEXT,
    grammar: GrammarOption = None,
    regex: RegexOption = None,
    tools: ToolsOption = None,
    mcp: McpOption = None,
    tool_choice: ToolChoiceOption = "auto",
    constrain: ConstrainOption = True,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before its continuation.")] = False,
    num_samples: Annotated[
        int,
        typer.Option("-N", "--num-samples", parser=integer, metavar="N", help="How many continuations."),
    ] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(
            parser=integer,
            metavar="K",
            help="With --json: report this many alternatives per token.",
            show_default=False,
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it comes.")] = True,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
    dtype: DTypeOption = None,
    quant: QuantOption = None,
    device: DeviceOption = "cpu",
    window: WindowOption = None,
    ctx_size: CtxSizeOption = None,
    prefill_chunk: PrefillChunkOption = 512,
    offline: OfflineOption = False,
) -> None:
    """Continue a text exactly as it stands, or with --chat answer it as a message.

    Examples:

      m7b complete "The capital of France is" -n 20

      m7b complete --json < prompt.txt
    """
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repeat_last_n=repeat_last_n,
        logit_bias=logit_bias_of(logit_bias),
        seed=seed,
        stop=tuple(stop or ()),
        logprobs=logprobs,
    )
    if logprobs is not None and not as_json and not jsonl:
        raise UsageError("--logprobs prints nothing in plain text", hint="add --json")
    if is_flag(ctx, "chat_template") and not chat:
        raise UsageError("--chat-template goes with --chat")
    keep_to = grammar_of(json_schema, answer_format, grammar, regex)
    if (tools or mcp) and not chat:
        raise UsageError("--tools and --mcp go with --chat")
    offered = _described(tools, mcp)
    request = CompletionRequest(
        "",
        params,
        num_samples,
        echo,
        conversation=ChatPrompt([], offered) if offered else None,
        grammar=keep_to,
        tool_choice=tool_choice,
        constrains_calls=constrain,
    )
    choice = ModelChoice(variant, model)
    if chat:
        refuse_base(choice, chat_template)
    if jsonl:
        if prompt is not None or file:
            raise UsageError("--jsonl brings its own prompts", hint="leave out PROMPT and --file")
        batch = Batch(jsonl, output, resume=resume)
    elif output or resume:
        raise UsageError("--output and --resume go with --jsonl")
    else:
        text = read_prompt(prompt, file, keep_newline=keep_newline)
        conversation = parse_chat_prompt(text, prompt_allowed=True) if chat else None
        if conversation and offered:
            conversation = replace(conversation, tools=offered)
        request = replace(request, prompt="" if chat else text, conversation=conversation)
    options = EngineOptions(
        threads=threads,
        dtype=dtype,
        quant=quant,
        device=device,
        window=window,
        ctx_size=ctx_size,
        prefill_chunk=prefill_chunk,
    )
    loaded = load_model(choice, options, chat_template=chat_template)
    if chat:
        require_template(loaded.name, loaded.template)
    if jsonl:
        batch.run(lambda fields: complete_silently(loaded, parse_request(fields, request, is_chat=chat)))
    elif as_json:
        Output().write_json(complete_silently(loaded, request))
    else:
        _print(Completion(loaded, request), streaming=stream)


def complete_silently(model: Model, request: CompletionRequest) -> dict[str, Any]:
    """The whole answer object of one request."""
    with PromptStatus() as status:
        return answer_request(model, request, status.show)


def _described(files: list[Path] | None, configs: list[Path] | None) -> list[dict[str, Any]] | None:
    """The tools to offer, in OpenAI's shape. They are only described here, and never run."""
    if not files and not configs:
        return None
    with Toolbox() as toolbox:
        fill(toolbox, files, configs)
        return [tool.as_json() for tool in toolbox.tools]


def _print(completion: Completion, *, streaming: bool) -> None:
    """Show the samples as plain text, each followed by one newline."""
    output = Output()
    try:
        for events in completion.samples():
            with PromptStatus() as status:
                texts = printed(status.watch(events))
                for text in texts if streaming else ["".join(texts)]:
                    output.write(text)
            output.write("\n")
    except KeyboardInterrupt:
        if output.is_terminal:
            output.write("\n")
        raise


def printed(events: Iterator[GenerationEvent]) -> Iterator[str]:
    """The text of an answer, or that of its calls. Calls that turn out to be text are told again as such."""
    is_of_calls = False
    for event in events:
        is_of_calls = is_of_calls or isinstance(event, CallDelta)
        if isinstance(event, CallDelta if is_of_calls else TextDelta):
            yield event.text
