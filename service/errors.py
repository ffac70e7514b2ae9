"""What can go wrong with a job, told apart by what its owner can do about it.

Code below the API knows no status codes; the one table that does is `PROBLEMS`, here because a failed job carries its
problem document too.
"""

from typing import Any

from models.errors import NeedsExtra, QuietframeError, UnknownDenoiser


class BadInput(QuietframeError):
    """The input cannot be denoised, however often it is tried."""


class UnknownFormat(BadInput):
    """The bytes are in no format that is read here."""


class FrameTooLarge(BadInput):
    """More pixels, frames or bytes than are accepted."""


class JobNotFound(QuietframeError):
    """There is no job of this id, or no longer."""


class JobNotReady(QuietframeError):
    """The job has no result yet."""


class ResultGone(QuietframeError):
    """The job had a result, or was to have one, and it is no more."""


class IdempotencyConflict(QuietframeError):
    """The idempotency key was used before, for another request."""


class TryLater(QuietframeError):
    """It may go well after a while."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        """
        Args:
            retry_after_s: after which; None where nobody knows.
        """
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(TryLater):
    """Too many jobs are waiting."""


class NoKey(QuietframeError):
    """The caller shows no API key that is known."""


class ScopeMissing(QuietframeError):
    """The caller's key does not allow this."""

    def __init__(self, message: str, *, scope: str) -> None:
        super().__init__(message)
        self.scope = scope


class RateExceeded(TryLater):
    """The caller has asked for more than a minute's quota."""


class NotReady(QuietframeError):
    """The service cannot take work now: the broker is away, or no worker is up."""


class StreamsFull(QueueFull):
    """Every worker has as many live streams as it takes."""


class StreamIdle(QuietframeError):
    """A live stream's caller sent nothing for so long that its place goes to others."""


class StreamBroken(QuietframeError):
    """The worker of a live stream is gone; what it had not answered is lost."""


class LeaseLost(QuietframeError):
    """Another worker has the job now; what this one made of it must not be kept."""


class Indivisible(QuietframeError):
    """A video cannot be worked on in parts: it must be done as one."""


class JobCancelled(QuietframeError):
    """The job's owner no longer wants it."""


class JobFailed(QuietframeError):
    """A job that was waited for failed; what its worker found is the caller's answer."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(str(document.get("detail", "")))
        self.document = document


# error -> (status, code, title, may the same request succeed later)
PROBLEMS: dict[type[QuietframeError], tuple[int, str, str, bool]] = {
    FrameTooLarge: (413, "too_large", "The input is too large", False),
    UnknownFormat: (415, "unknown_format", "The input is in no known format", False),
    BadInput: (422, "bad_input", "The input cannot be denoised", False),
    UnknownDenoiser: (422, "unknown_model", "There is no such model", False),
    IdempotencyConflict: (422, "idempotency_conflict", "The idempotency key belongs to another request", False),
    JobNotFound: (404, "job_not_found", "There is no such job", False),
    JobNotReady: (409, "job_not_ready", "The job has no result yet", True),
    ResultGone: (410, "result_gone", "The job's result is gone", False),
    JobCancelled: (409, "job_cancelled", "The job was cancelled", False),
    NoKey: (401, "unauthenticated", "An API key is needed", False),
    ScopeMissing: (403, "scope_missing", "The API key does not allow this", False),
    RateExceeded: (429, "rate_limited", "The caller's quota is used up", True),
    QueueFull: (503, "queue_full", "Too many jobs are waiting", True),
    StreamsFull: (503, "streams_full", "All places for live streams are taken", True),
    StreamIdle: (408, "stream_idle", "The live stream was silent for too long", True),
    StreamBroken: (503, "stream_broken", "The live stream broke off", True),
    NotReady: (503, "not_ready", "The service is not ready", True),
    NeedsExtra: (503, "needs_extra", "An optional part is not installed", False),
    QuietframeError: (500, "failed", "Denoising failed", True),
}


def problem_of(err: Exception) -> dict[str, object]:
    """The problem document (RFC 9457) of an error; the nearest class wins, and a stranger's error tells nothing.

    Messages of our own errors are written for the caller; any other exception's text may hold paths and is kept back.
    """
    if isinstance(err, JobFailed):
        return err.document
    for cls in type(err).__mro__:
        if cls in PROBLEMS:
            status, code, title, retryable = PROBLEMS[cls]
            return problem(status, code, title, str(err), retryable=retryable)
    return problem(500, "failed", "Denoising failed", "an unexpected error; the service's log has it", retryable=True)


def problem_named(code: str, detail: str) -> dict[str, object]:
    """The problem document of a stable code, as where only the code has come along; an unknown one is as `failed`."""
    rows = {row[1]: row for row in PROBLEMS.values()}
    status, _, title, retryable = rows.get(code, PROBLEMS[QuietframeError])
    return problem(status, code, title, detail, retryable=retryable)


def problem(status: int, code: str, title: str, detail: str, *, retryable: bool = False) -> dict[str, object]:
    return {
        "type": f"urn:quietframe:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
    }
