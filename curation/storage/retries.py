"""Remote operations are tried again, with pauses that are the same every time."""

import time
from collections.abc import Callable
from typing import TypeVar

from curation.errors import AccessError, CurationError, RequestError
from curation.storage.urls import without_secrets

T = TypeVar("T")

TRIES = 8  # attempts at a remote operation before it counts as an access error


def pause(attempt: int) -> float:
    """Seconds to wait after a failed attempt (0, 1, …): 0.2, 0.4, …, 10 at most; the same every time."""
    return min(0.2 * 2.0**attempt, 10.0)


def retry(call: Callable[[], T], name: str, tries: int = TRIES) -> T:
    """Call until it works, with growing pauses; a missing or an existing file is an answer, not a failure.

    Raises:
        AccessError: it failed every time, or for want of permission.
        RequestError: the profile that was asked for is not there.
    """
    for attempt in range(tries):
        try:
            return call()
        except (FileNotFoundError, FileExistsError, CurationError):
            raise
        except Exception as error:  # noqa: BLE001 - every client library has its own network errors
            denied = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
            said = without_secrets(str(error))
            if type(error).__name__ == "ProfileNotFound":
                raise RequestError(f"{name}: {said}: write it to the AWS config file, or name another") from error
            if denied or attempt == tries - 1:
                why = "no credentials, or no permission" if denied else f"{type(error).__name__}: {said}"
                raise AccessError(f"{name}: {why}") from error
            time.sleep(pause(attempt))
    raise AssertionError("tries is at least 1")
