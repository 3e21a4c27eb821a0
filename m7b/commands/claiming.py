"""From the options of `m7b bench --claims` to a report on the ideas of the architecture."""

from dataclasses import replace

from m7b.bench.claims import ClaimsReport
from m7b.bench.results import Work
from m7b.commands.measuring import Plan
from m7b.commands.shared.options import VariantName
from m7b.commands.subject import Choice, about, engine_options, open_subject
from m7b.errors import ContextOverflow
from m7b.progress import run_with_progress
from m7b.render import Status

_VARIANT = "base-v0.1"
"""Whose claims they are, where no model is named."""


def measure_claims(choice: Choice, plan: Plan, status: Status) -> ClaimsReport:
    """Measure grouped queries and the window of the chosen shape, with random weights, as deep as it goes.

    Raises:
        ContextOverflow: not so many tokens fit its context.
        OutOfResources: not one layer fits into memory.
        UsageError: the window is no less than the context.
    """
    from m7b.runtime.claims import fitting_layers, measure_claims, shapes_of
    from m7b.runtime.loader import DTYPES
    from m7b.runtime.machine import as_json, describe_machine

    if not choice.variant and not choice.model:
        choice = replace(choice, variant=VariantName(_VARIANT))
    window, choice = choice.window, replace(choice, random_weights=True, window=None)
    opened = open_subject(choice)
    shapes, context = shapes_of(opened.config, window), opened.config.max_seq_len
    work = Work(0, plan.decode_tokens, context - plan.decode_tokens - 1)
    if work.depth < 0:
        raise ContextOverflow(
            f"-n {plan.decode_tokens} does not fit a context of {context}", hint="decode fewer tokens"
        )
    options = engine_options(choice, context)
    dtype = DTYPES[choice.dtype or "bfloat16"]
    n_layers = fitting_layers(shapes, work, dtype, options.prefill_chunk)
    claims = run_with_progress(measure_claims(shapes, n_layers, work, plan.repetitions, options), status.show)
    return ClaimsReport(
        machine=as_json(describe_machine()),
        model=about(opened, choice, choice.quant or choice.dtype or "bfloat16"),
        measured_layers=n_layers,
        depth=work.depth,
        claims=claims,
    )
