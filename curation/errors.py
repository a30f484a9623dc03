"""Every error that a user can cause, in one place.

A message is one line that says what is wrong and how to mend it. The exit
status belongs to the class: 2 the request is wrong, 1 anything else.
"""

from typing import Any


class CurationError(Exception):
    """Base of all errors that are shown as one line without a traceback."""

    exit_status = 1
    result: dict[str, Any] | None = None  # what the run wrote all the same


class RequestError(CurationError):
    """The request is wrong: config, path or schema; nothing was done."""

    exit_status = 2


class AccessError(CurationError):
    """Bytes could not be had (network, credentials, throttling, a vanished shard); worth another try."""


class ChangedError(AccessError):
    """A file vanished or changed after it was listed: another try with the same listing reads no better."""


class IncompleteError(CurationError):
    """The run stopped before everything was done; what is done is kept and the next run goes on from it."""


class ConflictError(CurationError):
    """Another run put another manifest in force meanwhile; what this one wrote is whole, and theirs stays."""


class JobError(CurationError):
    """A job on a cluster did not succeed, or is no longer followed.

    Args:
        message: what became of it.
        status: the exit status of the job; 130 where it was stopped, or is left to itself.
        result: the result that it printed all the same.
    """

    def __init__(self, message: str, status: int, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.exit_status, self.result = status, result


class BadSample(CurationError):
    """One sample cannot be used; the shard goes on without it.

    Args:
        stage: where it broke: ``read``, ``decode``, ``encode``.
        kind: a stable, short name of the fault, as it stands in the quarantine.
        message: what was found, for a person.
    """

    def __init__(self, stage: str, kind: str, message: str) -> None:
        super().__init__(stage, kind, message)
        self.stage, self.kind, self.message = stage, kind, message

    def __str__(self) -> str:
        return f"{self.stage}: {self.kind}: {self.message}"


def require(holds: bool, message: str) -> None:
    """See that a request can be met.

    Raises:
        RequestError: it cannot, with the message.
    """
    if not holds:
        raise RequestError(message)
