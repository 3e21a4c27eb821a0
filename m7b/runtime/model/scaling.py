"""Ways to stretch RoPE over more positions than a model was trained on. Knows numbers; no file, no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every frequency is divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Frequencies that turn fewer than `beta_slow` times in the original context are divided by `factor`.

    Those that turn more than `beta_fast` times stay, the rest lie between; `truncate` widens this ramp to
    whole dimensions. Cosines and sines are multiplied by `attention_factor`. (YaRN, arXiv:2309.00071.)
    """

    factor: float
    original_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """As Llama 3.1: wavelengths above original / `low_freq_factor` are stretched by `factor`.

    Those below original / `high_freq_factor` stay, the rest lie between.
    """

    factor: float
    original_context: int
    low_freq_factor: float
    high_freq_factor: float


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """Theta grows with a text that is longer than `original_context`; up to there nothing is scaled.

    Then the keys of all tokens change with each new one, which no cache of keys can follow. So this runs up
    to the original context, and no further.
    """

    factor: float
    original_context: int


RopeScaling = LinearScaling | YarnScaling | Llama3Scaling | DynamicScaling
