"""Errors of the hub's client library: which ones another try may mend, and what the others mean."""

from m7b.errors import CheckpointNotFound, M7bError, UsageError
from m7b.hub.transfer.answers import TryAgain

_AGAIN = (408, 425, 429, 500, 502, 503, 504)


def explain_failure(error: Exception, repo_id: str) -> tuple[str, float | None]:
    """Say why a call failed that may be tried again, and how many seconds the hub asks to wait.

    Raises:
        M7bError: another try would fail as well.
        Exception: `error` itself, where it has nothing to do with the hub.
    """
    from huggingface_hub import constants, errors

    if refusal := _make_refusal(error, repo_id):
        raise refusal
    match error:
        case TryAgain():
            return f"cannot reach {constants.ENDPOINT} ({error})", error.after_s
        case errors.HfHubHTTPError():
            response = error.response
            return f"the hub answers {response.status_code}", _parse_seconds(
                response.headers.get("Retry-After")
            )
    raise error


def _make_refusal(error: Exception, repo_id: str) -> M7bError | None:
    """Translate an error that another try would not mend, None where another try may."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo_id}"
    match error:
        case errors.GatedRepoError():
            return CheckpointNotFound(
                f"{repo_id} is gated: its authors ask who you are",
                hint=f"accept their conditions on {page}, then run: hf auth login (or set HF_TOKEN)",
            )
        case errors.RevisionNotFoundError():
            return CheckpointNotFound(f"{repo_id} has no such revision", hint=f"see the branches on {page}")
        case errors.RepositoryNotFoundError():
            return CheckpointNotFound(
                f"{constants.ENDPOINT} has no {repo_id}, or does not show it to you",
                hint="check its spelling; where it is private or gated run: hf auth login (or set HF_TOKEN)",
            )
        case errors.RemoteEntryNotFoundError():
            return CheckpointNotFound(
                f"a file of {repo_id} is not there any more", hint="start the same command again"
            )
        case errors.HFValidationError():
            return UsageError(f"{repo_id!r} is no hub id", hint="it looks like mistralai/Mistral-7B-v0.1")
        case errors.OfflineModeIsEnabled():
            return CheckpointNotFound(
                f"{repo_id} is not on this machine, and HF_HUB_OFFLINE is set", hint="unset it to download"
            )
        case errors.FileMetadataError():
            return CheckpointNotFound(
                f"{constants.ENDPOINT} does not answer as a hub", hint="see what HF_ENDPOINT is set to"
            )
        case (
            ValueError() | TypeError() | KeyError() | AttributeError()
        ):  # what the library meets in such JSON
            return CheckpointNotFound(
                f"{constants.ENDPOINT} does not answer as a hub", hint="see what HF_ENDPOINT is set to"
            )
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return CheckpointNotFound(
                f"{constants.ENDPOINT} refuses the access token ({error.response.status_code})",
                hint=f"make another that may read {repo_id}, then run: hf auth login (or set HF_TOKEN)",
            )
        case errors.HfHubHTTPError() if error.response.status_code not in _AGAIN:
            return CheckpointNotFound(
                f"{constants.ENDPOINT} answers {error.response.status_code} to a question about {repo_id}",
                hint="see what HF_ENDPOINT is set to",
            )
    return None


def _parse_seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.isdigit() else None
