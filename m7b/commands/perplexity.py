"""`m7b perplexity`: how well a model foretells a text."""

import json
from pathlib import Path
from typing import Annotated

import typer

from m7b.commands.shared.evaluation import (
    StrideOption,
    choose_stride,
    read_text,
    read_with_progress,
    usual_ctx_size,
)
from m7b.commands.shared.expansion import expand_options
from m7b.commands.shared.loading import load_model
from m7b.commands.shared.options import JsonOption, ModelOption, VariantOption
from m7b.generation import EngineOptions
from m7b.models import ModelChoice
from m7b.render import Output, Status


@expand_options
def perplexity(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A text in UTF-8; - is stdin.")],
    variant: VariantOption = None,
    model: ModelOption = None,
    stride: StrideOption = None,
    engine: EngineOptions,
    as_json: JsonOption = False,
) -> None:
    """Tell the perplexity of a text: the exponential of the mean negative log-likelihood of its tokens.

    A text longer than the context (2048 tokens if not given) is read in windows that move on by the stride,
    half a context if not given; every token but the first counts once.

    Examples:

      m7b perplexity prompt.txt

      m7b perplexity prompt.txt --ctx-size 1024 --stride 256 --json
    """
    from m7b.runtime.evaluate import losses
    from m7b.runtime.evaluate import perplexity as perplexity_of

    text = read_text(file)
    loaded = load_model(ModelChoice(variant, model), engine)
    ctx_size = engine.ctx_size or usual_ctx_size(loaded)
    stride, ids = choose_stride(stride, ctx_size), text.ids(loaded.tokenizer)
    status = Status()
    try:
        found = perplexity_of(
            read_with_progress(losses(loaded.engine, ids, ctx_size, stride), loaded.name, len(ids), status)
        )
    finally:
        status.clear()
    if as_json:
        figures = {"perplexity": found.value, "error": found.error, "tokens": found.n_tokens}
        about = {"model": loaded.name, "text": text.name, "ctx_size": ctx_size, "stride": stride}
        Output().write(json.dumps(about | figures, ensure_ascii=False) + "\n")
        return
    Output().write(
        f"perplexity {found.value:.4f} ± {found.error:.4f} over {found.n_tokens:,} tokens "
        f"(context {ctx_size}, stride {stride})\n"
    )
