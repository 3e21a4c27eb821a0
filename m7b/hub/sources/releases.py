"""The tars in which Mistral AI published the checkpoints: addresses and checksums."""

from dataclasses import dataclass

_HOST = "https://models.mistralcdn.com"


@dataclass(frozen=True, slots=True)
class Release:
    """Where the tar of a variant is, and its published checksum, None where none was."""

    url: str
    checksum: str | None


RELEASES = {
    "base-v0.1": Release(
        f"{_HOST}/mistral-7b-v0-1/mistral-7B-v0.1.tar", "md5:37dab53973db2d56b2da0a033a15307f"
    ),
    # The only address that is documented; base-v0.1 was there before it moved, and the host may be gone.
    "instruct-v0.1": Release(
        "https://files.mistral-7b-v0-1.mistral.ai/mistral-7B-instruct-v0.1.tar", checksum=None
    ),
    "instruct-v0.2": Release(
        f"{_HOST}/mistral-7b-v0-2/Mistral-7B-v0.2-Instruct.tar", "md5:fbae55bc038f12f010b4251326e73d39"
    ),
    "base-v0.3": Release(
        f"{_HOST}/mistral-7b-v0-3/mistral-7B-v0.3.tar", "md5:0663b293810d7571dad25dae2f2a5806"
    ),
    "instruct-v0.3": Release(
        f"{_HOST}/mistral-7b-v0-3/mistral-7B-Instruct-v0.3.tar", "md5:80b71fcb6416085bcb4efad86dfb4d52"
    ),
}
"""The release of each variant that has one, by its name."""
