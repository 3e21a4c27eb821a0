"""`m7b export`: the commands with which other engines run a model as m7b does."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m7b.commands.shared.expansion import flag
from m7b.commands.shared.options import (
    ENGINE,
    ChatTemplateOption,
    ModelOption,
    VariantOption,
    WindowOption,
)
from m7b.errors import UsageError
from m7b.models import ModelChoice, ModelFiles, load_texts, open_model
from m7b.render import Output, note
from m7b.templates import MistralTemplate, Template, shows_tools
from m7b.variants import VARIANTS

if TYPE_CHECKING:
    from m7b.runtime.checkpoints import Checkpoint

export = typer.Typer(help="Show how other engines run a model.", rich_markup_mode=None)


@export.callback()
def _group() -> None:
    """Show how other engines run a model."""


@export.command()
def vllm(
    variant: VariantOption = None,
    model: ModelOption = None,
    window: WindowOption = None,
    ctx_size: Annotated[int | None, flag(ENGINE["ctx_size"])] = None,
    chat_template: ChatTemplateOption = None,
    batch: Annotated[
        Path, typer.Option("-i", "--input", metavar="FILE", help="The batch that run-batch reads.")
    ] = Path("batch.jsonl"),
) -> None:
    """Print the vllm serve and vllm run-batch commands for a model, on a machine with a GPU.

    Examples:

      m7b export vllm

      m7b export vllm --window off --ctx-size 4096 | tail -n 1
    """
    choice = ModelChoice(variant, model)
    files = open_model(choice, window=window)
    options = [
        *_list_format_options(files),
        *_list_window_options(files, is_given=window is not None),
        *(["--max-model-len", str(ctx_size)] if ctx_size else []),
        *_list_chat_options(load_texts(choice, files, chat_template)[1], chat_template),
    ]
    path = str(_find_weights(files.checkpoint))
    answers = batch.with_name(f"{batch.stem}-answers.jsonl")
    serve = ["vllm", "serve", path, "--served-model-name", files.name, *options]
    run = ["vllm", "run-batch", "-i", str(batch), "-o", str(answers), "--model", path]
    Output().write(
        f"{shlex.join(serve)}\n{shlex.join([*run, '--served-model-name', files.name, *options])}\n"
    )


def _find_weights(checkpoint: "Checkpoint") -> Path:
    """What vLLM is to load.

    Raises:
        UsageError: it cannot.
    """
    from m7b.runtime.checkpoints import Format

    path = checkpoint.path
    if checkpoint.format is Format.NATIVE and not list(path.glob("*.safetensors")):
        raise UsageError(
            f"vLLM reads no .pth, which {path} holds",
            hint="download the variant from the hub, in safetensors",
        )
    if checkpoint.format is Format.GGUF:
        note(
            "vLLM reads GGUF by its plug-in: pip install vllm-gguf-plugin; its authors call that experimental"
        )
        return next(iter(sorted(path.glob("*.gguf")))) if path.is_dir() else path
    return path


def _list_format_options(files: ModelFiles) -> list[str]:
    from m7b.runtime.checkpoints import Format

    checkpoint = files.checkpoint
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    match checkpoint.format:
        case Format.GGUF:
            known = VARIANTS.get(files.name)
            if known:
                return ["--tokenizer", known.hub_id]
            note("vLLM's authors advise --tokenizer with the model's own folder: they call GGUF's unstable")
            return []
        case Format.NATIVE:
            return ["--tokenizer-mode", "mistral", "--config-format", "mistral", "--load-format", "mistral"]
        case Format.HF:
            # So the template and the tokens are mistral-common's; without these files vLLM has no such mode.
            has_mistrals = any(folder.glob("tokenizer.model.v*")) or (folder / "tekken.json").exists()
            return ["--tokenizer-mode", "mistral"] if has_mistrals else []


def _list_window_options(files: ModelFiles, *, is_given: bool) -> list[str]:
    """The window where vLLM would take another: a GGUF file has none for it."""
    from m7b.runtime.checkpoints import Format

    window = files.config.sliding_window
    if is_given or (files.checkpoint.format is Format.GGUF and window is not None):
        return ["--hf-overrides", json.dumps({"sliding_window": window})]
    return []


def _list_chat_options(template: Template | None, given: str | None) -> list[str]:
    """A template that was given, and tools where it shows them as Mistral's does."""
    is_file = given is not None and given not in ("v1", "v3")
    tools = template is not None and isinstance(template, MistralTemplate) and shows_tools(template)
    return [
        *(["--chat-template", str(given)] if is_file else []),
        *(["--enable-auto-tool-choice", "--tool-call-parser", "mistral"] if tools else []),
    ]
