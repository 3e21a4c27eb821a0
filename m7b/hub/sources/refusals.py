"""What the errors of a hub's client library mean: another try, or an end with the way out."""

from m7b.errors import CheckpointNotFound, UsageError

_AGAIN = (408, 425, 429, 500, 502, 503, 504)


def reason(error: Exception, repo_id: str) -> tuple[str, float | None]:
    """Why a call failed that may be tried again, and the seconds that the hub asks to wait.

    Raises:
        M7bError: another try would fail as well.
        Exception: `error` itself, where it has nothing to do with the hub.
    """
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo_id}"
    match error:
        case errors.GatedRepoError():
            raise CheckpointNotFound(
                f"{repo_id} is gated: its authors ask who you are",
                hint=f"accept their conditions on {page}, then run: hf auth login (or set HF_TOKEN)",
            )
        case errors.RevisionNotFoundError():
            raise CheckpointNotFound(f"{repo_id} has no such revision", hint=f"see the branches on {page}")
        case errors.RepositoryNotFoundError():
            raise CheckpointNotFound(
                f"{constants.ENDPOINT} has no {repo_id}, or does not show it to you",
                hint="check its spelling; where it is private or gated run: hf auth login (or set HF_TOKEN)",
            )
        case errors.RemoteEntryNotFoundError():
            raise CheckpointNotFound(
                f"a file of {repo_id} is not there any more", hint="start the same command again"
            )
        case errors.HFValidationError():
            raise UsageError(f"{repo_id!r} is no hub id", hint="it looks like mistralai/Mistral-7B-v0.1")
        case errors.OfflineModeIsEnabled():
            raise CheckpointNotFound(
                f"{repo_id} is not on this machine, and HF_HUB_OFFLINE is set", hint="unset it to download"
            )
        case errors.FileMetadataError():
            raise CheckpointNotFound(
                f"{constants.ENDPOINT} does not answer as a hub", hint="see what HF_ENDPOINT is set to"
            )
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            raise CheckpointNotFound(
                f"{constants.ENDPOINT} refuses the access token ({error.response.status_code})",
                hint=f"make another that may read {repo_id}, then run: hf auth login (or set HF_TOKEN)",
            )
        case errors.HfHubHTTPError() if error.response.status_code in _AGAIN:
            return f"the hub answers {error.response.status_code}", _seconds(
                error.response.headers.get("Retry-After")
            )
        case errors.HfHubHTTPError():
            raise CheckpointNotFound(
                f"{constants.ENDPOINT} answers {error.response.status_code} to a question about {repo_id}",
                hint="see what HF_ENDPOINT is set to",
            )
        case errors.LocalEntryNotFoundError() | errors.HTTPError():  # type: ignore[attr-defined]
            cause = error.__cause__ or error
            return f"cannot reach {constants.ENDPOINT} ({type(cause).__name__})", None
    raise error


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.isdigit() else None
