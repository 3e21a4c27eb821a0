"""The option types of sampling, one for each field of `SamplingParams` that users set."""

from typing import Annotated, Any

import typer

from m7b.commands.shared.options import integer, number


def _number(text: str) -> Any:
    return typer.Option(parser=number, metavar="X", help=text)


def _integer(text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, parser=integer, metavar="N", help=text, **settings)


MaxTokensOption = Annotated[int, _integer("Most tokens to generate.", "-n", "--max-tokens")]
TemperatureOption = Annotated[float, _number("Randomness; 0 takes the most likely token.")]
TopPOption = Annotated[float, _number("Keep the likeliest tokens up to this mass; 1 is off.")]
TopKOption = Annotated[int, _integer("Keep this many of the likeliest tokens; 0 is off.")]
MinPOption = Annotated[float, _number("Drop tokens less likely than this times the likeliest; 0 is off.")]
TypicalPOption = Annotated[float, _number("Keep the most typical tokens up to this mass; 1 is off.")]
RepetitionPenaltyOption = Annotated[float, _number("Divide the logits of seen tokens; 1 is off.")]
PresencePenaltyOption = Annotated[float, _number("Subtract once from each seen token; 0 is off.")]
FrequencyPenaltyOption = Annotated[float, _number("Subtract for every time a token was seen; 0 is off.")]
RepeatLastNOption = Annotated[int, _integer("Tokens that the penalties look back on; -1 is all.")]
LogitBiasOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ID=BIAS", help="Add to one token's logit; can be repeated.", show_default=False),
]
SeedOption = Annotated[int | None, _integer("Same seed, same text.", show_default=False)]
StopOption = Annotated[
    list[str] | None, typer.Option(help="End before this text; can be repeated.", show_default=False)
]


def logit_bias_of(entries: list[str] | None) -> dict[int, float]:
    """The biases by token id.

    Raises:
        typer.BadParameter: an entry is not of the form ID=BIAS.
    """
    biases = {}
    for entry in entries or ():
        token, _, bias = entry.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            message = f"{entry!r} is not of the form ID=BIAS, such as 15043=-5"
            raise typer.BadParameter(message, param_hint="'--logit-bias'") from None
    return biases
