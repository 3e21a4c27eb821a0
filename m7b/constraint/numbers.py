"""Numbers between bounds in a Lark grammar: integers digit by digit, others by llguidance's own rules."""

import json
import math
from fractions import Fraction

from m7b.constraint.cases import Numbers
from m7b.errors import UsageError

MAX_NUMBER = 2**53 - 1
"""The largest integer that every JSON reader keeps (RFC 8259, section 6); larger ones must be asked for."""
_MAX_LONG = 2**64 - 1
_MAX_REMAINDERS = 5_000
_MANY = 10**9  # numbers beyond it are written without a fraction where a bound has to hold


def write_numbers(numbers: Numbers) -> list[str]:
    """Write the right sides of rules, which together write `numbers`."""
    match numbers.is_integral:
        case True:
            return _write_integers(numbers)
        case False:
            return _write_fractions(numbers)
        case None:
            return _write_any(numbers)


def _write_integers(numbers: Numbers) -> list[str]:
    low, high = _find_bounds(numbers)
    if numbers.step is not None and numbers.step != 1:
        _check_step(numbers.step)
        schema = {"type": "integer", "multipleOf": _to_json(numbers.step)}
        bounds = {"minimum": max(low, -MAX_NUMBER), "maximum": min(high, MAX_NUMBER)}
        return [f"%json {json.dumps(schema | bounds)}"]
    return _write_range(low, high)


def _find_bounds(numbers: Numbers) -> tuple[int, int]:
    """The least and the largest integer."""
    low, high = numbers.low, numbers.high
    least = None if low is None else math.floor(low) + 1 if numbers.is_low_open else math.ceil(low)
    most = None if high is None else math.ceil(high) - 1 if numbers.is_high_open else math.floor(high)
    if least is None:
        least = -MAX_NUMBER if most is None or most > -MAX_NUMBER else most - _MAX_LONG
    if most is None:
        most = MAX_NUMBER if least < MAX_NUMBER else least + _MAX_LONG
    return least, most


def _write_range(low: int, high: int) -> list[str]:
    """Write the integers from `low` to `high`: from 8 to 12 they are `8|9|1[0-2]`."""
    options = []
    if low < 0:
        options.append("-(?:" + "|".join(_list_digits(max(1, -high), -low)) + ")")
    if high >= 0:
        options += _list_digits(max(0, low), high)
    return [f"/{'|'.join(options)}/"] if low <= high else []


def _list_digits(low: int, high: int) -> list[str]:
    """Patterns of the numbers from `low` to `high`, neither negative, by their lengths."""
    if low > high:
        return []
    found = []
    for length in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (length - 1) if length > 1 else 0)
        found.append(_match_digits(str(least), str(min(high, 10**length - 1))))
    return found


def _match_digits(low: str, high: str) -> str:
    """A pattern of the numbers from `low` to `high`, which have as many digits."""
    n_rest = len(low) - 1
    if low == high:
        return low
    if low[1:] == "0" * n_rest and high[1:] == "9" * n_rest:
        return f"[{low[0]}-{high[0]}]" + (f"[0-9]{{{n_rest}}}" if n_rest else "")
    if low[0] == high[0]:
        return low[0] + _match_digits(low[1:], high[1:])
    first, last = int(low[0]), int(high[0])
    options = []
    if low[1:] != "0" * n_rest:
        options.append(low[0] + _match_digits(low[1:], "9" * n_rest))
        first += 1
    if high[1:] != "9" * n_rest:
        options.append(high[0] + _match_digits("0" * n_rest, high[1:]))
        last -= 1
    if first <= last:
        options.append(f"[{first}-{last}][0-9]{{{n_rest}}}")
    return f"(?:{'|'.join(options)})"


def _write_fractions(numbers: Numbers) -> list[str]:
    """Write numbers that are no integers, between whole bounds."""
    low = -_MANY if numbers.low is None else math.ceil(numbers.low)
    high = _MANY if numbers.high is None else math.floor(numbers.high)
    fraction = r"\.[0-9]{0,5}[1-9]"
    options = []
    if low < 0:
        whole = _list_digits(max(0, -high), -low - 1)
        options.append(f"-(?:{'|'.join(whole)})" if whole else "")
    if high > 0 and max(low, 0) <= high - 1:
        options.append(f"(?:{'|'.join(_list_digits(max(low, 0), high - 1))})")
    return [f"/(?:{'|'.join(filter(None, options))}){fraction}/"] if any(options) else []


def _write_any(numbers: Numbers) -> list[str]:
    if numbers.step is not None:
        return [_write_multiples(numbers, numbers.step)]
    bounds = [abs(bound) for bound in (numbers.low, numbers.high) if bound is not None]
    if not bounds:
        return ['%json {"type": "number"}']
    if min(bounds) > MAX_NUMBER:
        return _write_integers(numbers)
    if max(bounds) > _MANY:
        small = _clip(numbers, _MANY)
        is_near = small.low is not None and small.high is not None and small.low < small.high
        return [*_write_integers(_clip(numbers, MAX_NUMBER)), *(_write_any(small) if is_near else [])]
    # JSON readers round: they read 0.99999999999999999999 as 1. They keep 15 digits.
    return _write_decimals(numbers, min(9, 15 - len(str(int(max(bounds))))))


def _write_decimals(numbers: Numbers, n_digits: int) -> list[str]:
    """Write numbers with up to `n_digits` behind the point, as integers of so many digits more."""
    scale = 10**n_digits
    clipped = _clip(numbers, MAX_NUMBER)
    assert clipped.low is not None
    assert clipped.high is not None
    low, high = clipped.low * scale, clipped.high * scale
    least = math.floor(low) + 1 if clipped.is_low_open else math.ceil(low)
    most = math.ceil(high) - 1 if clipped.is_high_open else math.floor(high)
    options = []
    if least < 0:
        options.append(f"-(?:{'|'.join(_list_decimals(max(1, -most), -least, n_digits))})")
    if most >= 0:
        options += _list_decimals(max(0, least), most, n_digits)
    return [f"/{'|'.join(options)}/"] if least <= most else []


def _list_decimals(low: int, high: int, n_digits: int) -> list[str]:
    """Patterns of the numbers from `low` to `high`, both without their point."""
    (first, above), (last, below) = divmod(low, 10**n_digits), divmod(high, 10**n_digits)
    if first == last:
        return [str(first) + _match_fraction(above, below, n_digits)]
    nines = 10**n_digits - 1
    between = f"(?:{'|'.join(_list_digits(first + 1, last - 1))})" if first + 1 < last else ""
    return [
        str(first) + _match_fraction(above, nines, n_digits),
        *([between + _match_fraction(0, nines, n_digits)] if between else []),
        str(last) + _match_fraction(0, below, n_digits),
    ]


def _match_fraction(low: int, high: int, n_digits: int) -> str:
    """A pattern of the point and the digits behind it; zeros at the end may be left out, and all of it."""
    digits = _match_open(str(low).zfill(n_digits), str(high).zfill(n_digits))
    return rf"\.(?:{digits})" if low else rf"(?:\.(?:{digits}))?"


def _match_open(low: str, high: str) -> str:
    """A pattern of one to all digits that come to something from `low` to `high` once zeros follow them."""
    n_rest = len(low) - 1
    zeros, nines = "0" * n_rest, "9" * n_rest
    if low == "0" + zeros and high == "9" + nines:
        return f"[0-9]{{1,{n_rest + 1}}}"
    if low[0] == high[0]:
        return low[0] + _match_tail(low[1:], high[1:])
    options = [low[0] + _match_tail(low[1:], nines), high[0] + _match_tail(zeros, high[1:])]
    if int(low[0]) + 1 < int(high[0]):
        between = f"[{int(low[0]) + 1}-{int(high[0]) - 1}]"
        options.append(between + (f"[0-9]{{0,{n_rest}}}" if n_rest else ""))
    return "|".join(options)


def _match_tail(low: str, high: str) -> str:
    if not low:
        return ""
    return f"(?:{_match_open(low, high)})" + ("" if int(low) else "?")


def _check_step(step: Fraction) -> None:
    """Refuse steps whose multiples take seconds to compile: they have as many remainders as states."""
    n_remainders = step.numerator
    for factor in (2, 5):
        while n_remainders % factor == 0:
            n_remainders //= factor
    if n_remainders > _MAX_REMAINDERS:
        raise UsageError(
            f"the schema's multipleOf {float(step):.15g} cannot be enforced",
            hint="give a multiple with fewer digits",
        )


def _clip(numbers: Numbers, limit: int) -> Numbers:
    low, high = numbers.low, numbers.high
    is_low = low is None or low < -limit
    is_high = high is None or high > limit
    return Numbers(
        Fraction(-limit) if is_low else low,
        Fraction(limit) if is_high else high,
        numbers.is_low_open and not is_low,
        numbers.is_high_open and not is_high,
    )


def _write_multiples(numbers: Numbers, step: Fraction) -> str:
    _check_step(step)
    schema: dict[str, str | int | float] = {"type": "number", "multipleOf": _to_json(step)}
    # llguidance lets some bounds in that are excluded, so they become the multiples beside them
    if numbers.low is not None:
        n_steps = numbers.low / step
        schema["minimum"] = _to_json(
            (math.floor(n_steps) + 1 if numbers.is_low_open else math.ceil(n_steps)) * step
        )
    if numbers.high is not None:
        n_steps = numbers.high / step
        schema["maximum"] = _to_json(
            (math.ceil(n_steps) - 1 if numbers.is_high_open else math.floor(n_steps)) * step
        )
    return f"%json {json.dumps(schema)}"


def _to_json(number: Fraction) -> int | float:
    return int(number) if number.denominator == 1 and abs(number) <= MAX_NUMBER else float(number)
