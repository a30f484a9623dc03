"""What the CronJob's pod does: create the RayJob of this time, follow it, and end with its status.

The RayJob is called after the Kubernetes Job, which is called after the time it was due: a pod that is made anew finds
the RayJob that the one before it created. It belongs to the Job, and goes when the Job goes.
"""

import json
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from curation.deploy.submission import PATIENCE, Left, connect, exit_status, follow
from curation.errors import CurationError, JobError, RequestError

log = logging.getLogger("curation")

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
OVER = ("Complete", "Failed", "ValidationFailed")
PAUSE = 5.0  # seconds between two looks
UNHEARD = 75  # exit status of a pod that lost the API: the Job makes it anew, and that one finds the RayJob


@dataclass(frozen=True)
class Api:
    """The Kubernetes API as a pod sees it.

    Attributes:
        url: of the server.
        account: the folder with the pod's token and the server's certificate.
    """

    url: str
    account: Path = ACCOUNT

    @classmethod
    def of_pod(cls) -> "Api":
        """Of the pod that this process runs in.

        Raises:
            RequestError: it runs in none.
        """
        try:
            return cls(f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}")
        except KeyError as error:
            raise RequestError("curate schedule launch runs in a pod of the CronJob that render made") from error

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer; the token is read anew each time, for it is changed now and then.

        Raises:
            OSError, HTTPException, ValueError: nobody answered, or not to the end.
        """
        certificate = self.account / "ca.crt"
        context = ssl.create_default_context(cafile=str(certificate)) if self.url.startswith("https://") else None
        request = urllib.request.Request(
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {(self.account / 'token').read_text().strip()}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")


def launch(api: Api, template: dict[str, Any], write: Callable[[str], Any]) -> dict[str, Any]:
    """Create the RayJob, or find it; show its log; its result.

    Args:
        api: of the pod.
        template: the RayJob, but for its name and owner.
        write: takes pieces of the log.

    Raises:
        JobError: the job failed, with its exit status; or `UNHEARD`: the API gave no answer for ``PATIENCE``.
        RequestError: Kubernetes refuses the RayJob, or KubeRay does.
    """
    name, uid = os.environ["JOB_NAME"], os.environ["JOB_UID"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    metadata = {**template["metadata"], "name": name, "ownerReferences": [owner]}
    folder = f"/apis/ray.io/v1/namespaces/{metadata['namespace']}/rayjobs"
    _ask(api, "POST", folder, {**template, "metadata": metadata})
    result: dict[str, Any] | None = None
    followed, missed, said = "", "", ""
    while True:
        status = _ask(api, "GET", f"{folder}/{name}").get("status") or {}
        state, attempt = status.get("jobDeploymentStatus") or "New", status.get("jobId", "")
        if state != said:
            log.info("%s: %s", name, state)
            said = state
        if state in OVER:
            return _outcome(name, status, result)
        if state == "Running" and attempt and attempt != followed and status.get("dashboardURL"):
            try:
                client = connect(status["dashboardURL"], None)
            except CurationError as error:
                if attempt != missed:
                    log.warning("the log cannot be had yet: %s", error)
                    missed = attempt
            else:
                followed, result = attempt, _follow(client, attempt, write)
        time.sleep(PAUSE)


def _ask(api: Api, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """An answer of the API, asked for again while it cannot be had; what is there already is as good as created."""
    began = time.monotonic()
    while True:
        try:
            status, answer = api.call(method, path, body)
        except (OSError, HTTPException, ValueError) as error:
            status, answer = 0, str(error)
        if status in (200, 201) or (status == 409 and method == "POST"):
            return answer if isinstance(answer, dict) else {}
        if status == 404 and method == "GET":
            raise CurationError(f"somebody deleted the RayJob {path.rpartition('/')[2]}")
        if 400 <= status < 500 and status != 429:
            raise RequestError(f"Kubernetes refuses the RayJob ({status}): {_message(answer)}")
        if time.monotonic() - began > PATIENCE:
            raise JobError(f"no answer from the Kubernetes API for {PATIENCE:.0f} s: {_message(answer)}", UNHEARD)
        time.sleep(PAUSE)


def _message(answer: Any) -> str:
    try:
        return str(json.loads(answer)["message"])
    except (TypeError, ValueError, KeyError):
        return str(answer)[:300]


def _follow(client: Any, submission: str, write: Callable[[str], Any]) -> dict[str, Any] | None:
    """Show the log while it can be had; what became of the job, the RayJob says."""
    try:
        return follow(client, submission, write)
    except Left:
        raise
    except JobError as error:
        return error.result
    except CurationError as error:
        log.warning("the log cannot be followed: %s", error)
        return None


def _outcome(name: str, status: dict[str, Any], result: dict[str, Any] | None) -> dict[str, Any]:
    """The result of a RayJob that succeeded.

    Raises:
        JobError: it did not.
    """
    if status.get("jobStatus") == "SUCCEEDED":
        return result or {"rayjob": name, "status": "SUCCEEDED"}
    message = str(status.get("message") or status.get("reason") or "no reason given")
    code = exit_status(None, message)
    if status.get("jobStatus") == "STOPPED":
        raise JobError(f"{name} was stopped; what is done is kept, the next run goes on from there", 130, result)
    if code is None:
        raise JobError(f"{name} failed: {message.strip().splitlines()[-1][:500]}", 1, result)
    raise JobError(f"{name} ended with status {code}", code, result)
