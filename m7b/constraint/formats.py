"""The values of `format` that are enforced, as patterns; JSON Schema has any other as an annotation."""

from dataclasses import dataclass

_LEAP = "(?:0[48]|[2468][048]|[13579][26])"
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|(?:[0-9]{{2}}{_LEAP}|{_LEAP}00)-02-29)"
)
_TIME = (
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_H16 = "[0-9a-fA-F]{1,4}"
_LAST32 = f"(?:{_H16}:{_H16}|{_IPV4})"
_IPV6 = "|".join(  # RFC 3986, section 3.2.2
    [
        f"(?:{_H16}:){{6}}{_LAST32}",
        f"::(?:{_H16}:){{5}}{_LAST32}",
        *(
            f"(?:(?:{_H16}:){{0,{n}}}{_H16})?::(?:{_H16}:){{{4 - n}}}{_LAST32}"
            for n in range(5)
        ),
        f"(?:(?:{_H16}:){{0,5}}{_H16})?::{_H16}",
        f"(?:(?:{_H16}:){{0,6}}{_H16})?::",
    ]
)  # fmt: skip
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,64}"
_URI_LETTER = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_AUTHORITY = rf"(?:[a-zA-Z0-9._~!$&'()*+,;=:-]+@)?(?:{_HOST}|\[(?:{_IPV6})\])(?::[0-9]{{1,5}})?"
_URI = (
    rf"[a-zA-Z][a-zA-Z0-9+.-]{{0,15}}:(?://{_AUTHORITY}(?:/{_URI_LETTER}*)*|/?{_URI_LETTER}+(?:/{_URI_LETTER}*)*)"
    rf"(?:\?(?:{_URI_LETTER}|[/?])*)?(?:#(?:{_URI_LETTER}|[/?])*)?"
)
_CLOCK = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"


@dataclass(frozen=True, slots=True)
class Format:
    """What all strings of a format match, and how long they may be."""

    pattern: str
    longest: int | None = None


FORMATS = {
    "date": Format(f"^{_DATE}$"),
    # llguidance's own let 29 February into every year, second 60 into every minute and fractions run on
    "time": Format(f"^{_TIME}$"),
    "date-time": Format(f"^{_DATE}T{_TIME}$"),
    "duration": Format(f"^P(?:{_DAYS}(?:{_CLOCK})?|{_CLOCK}|[0-9]+W)$"),
    "email": Format(rf"^{_ATOM}(?:\.{_ATOM})*@{_HOST}$", 254),
    "hostname": Format(f"^{_HOST}$", 253),
    "ipv4": Format(f"^{_IPV4}$"),
    "ipv6": Format(f"^(?:{_IPV6})$"),
    "uri": Format(f"^{_URI}$"),
    "uuid": Format("^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"),
}
