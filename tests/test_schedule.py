"""``curate schedule render``: objects that Kubernetes and KubeRay take, and a run that is what the config says."""

import json
import shlex
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from curation.config import load_config
from curation.deploy import launch as launching
from curation.deploy.kubernetes import as_yaml, render, write_files
from curation.deploy.launch import Api, launch
from curation.deploy.request import read_request
from curation.errors import JobError, RequestError
from tests.command import curate

SCHEMAS = Path(__file__).parent / "schemas"
ARCHIVE = ("archive.url={ours: s3://bucket/tiles}", "workspace=s3://bucket/curated")
RUN = ("prune", *ARCHIVE, "schedule.image=registry/curation:1")


def rendered(*arguments: str) -> dict[str, dict[str, Any]]:
    """The objects of a request, by kind; the RayJob too, as the pod will read it."""
    objects = {each["kind"]: each for each in yaml.safe_load_all(as_yaml(render(read_request(arguments, ""))))}
    return {**objects, "RayJob": yaml.safe_load(objects["ConfigMap"]["data"]["rayjob.yaml"])}


def strict(schema: Any) -> Any:
    """A structural schema of a CRD in which unknown fields fail, as ``kubectl`` has it, not merely vanish."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(below) for name, below in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
    return {**made, "additionalProperties": False} if closed else made


def check(each: dict[str, Any]) -> None:
    """Hold an object against the schema that its maker publishes."""
    if each["kind"] != "RayJob":
        kubernetes_validate.validate(each, "1.34", strict=True)
        return
    schema = strict({"type": "object", "properties": yaml.safe_load((SCHEMAS / "ray.io_rayjobs.yaml").read_text())})
    jsonschema.Draft202012Validator(schema).validate(each)
    cluster = each["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": group["template"]}
        kubernetes_validate.validate(template, "1.34", strict=True)


FULL = (
    *RUN,
    "schedule.name=nightly",
    "schedule.namespace=eo",
    "schedule.cron=30 2 * * 1-5",
    "schedule.time_zone=Europe/Berlin",
    "schedule.service_account=reader",
    "schedule.secret=storage",
    "schedule.gpu={max: 2, cpu: 8, memory: 64Gi, gpu: 4}",
    "schedule.spot.selector={node-type: spot, preemptible: true}",
    "schedule.spot.tolerations=[{key: spot, operator: Exists, effect: NoSchedule}]",
    "schedule.retries=1",
)


@pytest.mark.parametrize("arguments", [RUN, FULL], ids=["defaults", "all"])
def test_every_object_is_as_its_published_schema_has_it(arguments):
    objects = rendered(*arguments)
    kinds = ["ServiceAccount", "Role", "RoleBinding", "ConfigMap", "CronJob", "RayJob"]
    assert list(objects) == kinds
    for each in objects.values():
        check(each)


@pytest.mark.parametrize(
    "kind, path",
    [
        ("CronJob", ["spec"]),
        ("CronJob", ["spec", "jobTemplate", "spec", "podFailurePolicy", "rules", 0]),
        ("RayJob", ["spec"]),
        ("RayJob", ["spec", "rayClusterSpec", "autoscalerOptions"]),
        ("RayJob", ["spec", "rayClusterSpec", "workerGroupSpecs", 0]),
        ("RayJob", ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0]),
        ("Role", []),
    ],
)
def test_the_schemas_refuse_what_they_do_not_know(kind, path):
    each = rendered(*RUN)[kind]
    inner: Any = each
    for step in path:
        inner = inner[step]
    inner["strange"] = 1
    with pytest.raises(jsonschema.ValidationError, match="strange"):
        check(each)


def test_nothing_runs_before_there_is_work_and_nothing_stays():
    spec = rendered(*FULL)["RayJob"]["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] == 600 and spec["backoffLimit"] == 1
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [(g["groupName"], g["minReplicas"], g["maxReplicas"]) for g in cluster["workerGroupSpecs"]] == [
        ("cpu", 0, 8),
        ("gpu", 0, 2),
    ]
    cpu, gpu = (group["template"]["spec"] for group in cluster["workerGroupSpecs"])
    assert gpu["containers"][0]["resources"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "4"}
    assert "nvidia.com/gpu" not in cpu["containers"][0]["resources"]["limits"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    for pod in (cpu, gpu):
        assert pod["nodeSelector"] == {"node-type": "spot", "preemptible": "true"}
        assert pod["tolerations"] == [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]
    assert "nodeSelector" not in head and "tolerations" not in head
    for pod in (head, cpu, gpu):
        assert pod["serviceAccountName"] == "reader"
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "storage"}}]


def test_the_run_is_the_job_that_was_asked_for_sized_by_what_the_cluster_may_grow_to():
    entrypoint = rendered(*FULL)["RayJob"]["spec"]["entrypoint"]
    program, job, *overrides = shlex.split(entrypoint)[2:]
    assert (program, job) == ("curation.cli", "prune")
    config = load_config(overrides)
    assert config.archive.url == load_config(ARCHIVE).archive.url
    assert config.workspace == "s3://bucket/curated"
    assert config.runtime.address == "auto"
    assert config.runtime.autoscale == {"CPU": 8 * 8 + 2 * 8, "GPU": 2 * 4}
    assert "schedule" not in entrypoint


def test_two_runs_never_overlap_and_each_belongs_to_its_time():
    objects = rendered(*FULL)
    spec = objects["CronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == (
        "30 2 * * 1-5",
        "Europe/Berlin",
        "Forbid",
    )
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == objects["RoleBinding"]["subjects"][0]["name"] == "nightly"
    assert objects["Role"]["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    assert {each["metadata"]["namespace"] for each in objects.values()} == {"eo"}


def test_a_config_file_goes_along(tmp_path):
    file = tmp_path / "archive.yaml"
    file.write_text("archive:\n  url: s3://bucket/tiles\n")
    arguments = ("prune", f"config={file}", "workspace=s3://bucket/curated", "schedule.image=registry/curation:1")
    objects = rendered(*arguments)
    spec = objects["RayJob"]["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = head["containers"][0]["volumeMounts"]
    (name,) = [text for text in shlex.split(spec["entrypoint"]) if text.startswith("config=")]
    folder, _, file_name = name.removeprefix("config=").rpartition("/")
    assert folder == mount["mountPath"]
    assert objects["ConfigMap"]["data"][file_name] == file.read_text()
    check(objects["RayJob"])


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("prune", *ARCHIVE), "schedule.image is missing"),
        ((*RUN, "schedule.cron=at three"), "schedule.cron=at three: give minute"),
        ((*RUN, f"schedule.name={'n' * 39}"), "38 characters at most"),
        ((*RUN, "schedule.name=Nightly"), "small letters"),
        ((*RUN, "schedule.cpu.max=0"), "runs no tasks"),
        ((*RUN, "schedule.head.memory=lots"), "memory=lots"),
        ((*RUN, "submit.pip=[duckdb]"), r"submit\.\* is for curate submit"),
        ((*RUN, "archive.urll=x"), "did you mean"),
        (("prunes", *ARCHIVE), "no job 'prunes'"),
        (("submit", *ARCHIVE), "no job 'submit' for a cluster"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(arguments, says):
    with pytest.raises(RequestError, match=says):
        render(read_request(arguments, ""))


def test_yaml_goes_to_stdout_or_into_a_folder(tmp_path):
    outcome = curate("schedule", "render", *RUN)
    assert outcome.status == 0, outcome.stderr
    objects = list(yaml.safe_load_all(outcome.stdout))
    assert len(objects) == 5
    written = curate("schedule", "render", *RUN, "--output", str(tmp_path / "night"))
    files = [Path(path) for path in written.result["files"]]
    assert [yaml.safe_load(file.read_text()) for file in files] == objects
    assert curate("schedule", "rendre", *RUN).status == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=f"--output {tmp_path / 'file'}: cannot write"):
        write_files(objects, tmp_path / "file")


@contextmanager
def kubernetes(states: list[dict[str, Any]]) -> Iterator[tuple[Api, list[Any]]]:
    """An API server that knows RayJobs: each look finds the next of some states, the last for ever."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: Any) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            self.answer(409 if len(asked) > 1 else 201, {"message": "it exists"})

        def do_GET(self) -> None:
            self.answer(200, {"status": states.pop(0) if len(states) > 1 else states[0]})

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Api(f"http://127.0.0.1:{server.server_port}"), asked
    finally:
        server.shutdown()


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pod of a Job that was due at a certain minute."""
    (tmp_path / "token").write_text("let-me-in\n")
    monkeypatch.setenv("JOB_NAME", "nightly-29401234")
    monkeypatch.setenv("JOB_UID", "11111111-2222-3333-4444-555555555555")
    monkeypatch.setattr(launching, "PAUSE", 0.01)
    return tmp_path


def test_the_pod_creates_the_rayjob_once_and_ends_as_it_does(pod, monkeypatch):
    tried, followed = [], []

    def connect(dashboard: str, token_file: None) -> str:
        tried.append(dashboard)
        if len(tried) == 1:
            raise RequestError("nobody answers yet")
        return dashboard

    def follow(client: str, submission: str, write: Any) -> dict[str, Any]:
        followed.append((client, submission))
        return {"kept": 7}

    monkeypatch.setattr(launching, "connect", connect)
    monkeypatch.setattr(launching, "follow", follow)
    template = rendered(*FULL)["RayJob"]
    running = {"jobDeploymentStatus": "Running", "jobId": "nightly-x", "dashboardURL": "head:8265"}
    states = [{}, running, running, running, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    with kubernetes(states) as (api, asked):
        api = Api(api.url, pod)
        assert launch(api, template, print) == {"kept": 7}
        assert launch(api, template, print) == {"rayjob": "nightly-29401234", "status": "SUCCEEDED"}  # a pod made anew
    assert followed == [("head:8265", "nightly-x")] and len(tried) == 2
    path, authorization, created = asked[0]
    assert path == "/apis/ray.io/v1/namespaces/eo/rayjobs"
    assert authorization == "Bearer let-me-in"
    assert created["spec"] == template["spec"]
    assert created["metadata"]["name"] == "nightly-29401234"
    assert created["metadata"]["ownerReferences"][0]["uid"] == "11111111-2222-3333-4444-555555555555"
    check(created)


@pytest.mark.parametrize(
    "state, status",
    [
        ({"jobStatus": "FAILED", "message": "Job entrypoint command failed with exit code 2, last available logs:"}, 2),
        (
            {"jobStatus": "FAILED", "message": "Job entrypoint command failed with exit code -9. No logs available."},
            137,
        ),
        ({"jobStatus": "", "reason": "DeadlineExceeded"}, 1),
        ({"jobStatus": "STOPPED"}, 130),
    ],
)
def test_the_pod_passes_the_status_on(pod, state, status):
    with kubernetes([{"jobDeploymentStatus": "Failed", **state}]) as (api, _), pytest.raises(JobError) as caught:
        launch(Api(api.url, pod), rendered(*RUN)["RayJob"], print)
    assert caught.value.exit_status == status


def test_a_pod_that_loses_the_api_ends_with_a_status_that_its_job_tries_again_on(pod, monkeypatch):
    monkeypatch.setattr(launching, "PATIENCE", 0.05)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        api = Api(f"http://127.0.0.1:{nobody.getsockname()[1]}", pod)
        with pytest.raises(JobError, match="no answer from the Kubernetes API") as caught:
            launch(api, rendered(*RUN)["RayJob"], print)
    final, _ = rendered(*RUN)["CronJob"]["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][::-1]
    assert final["action"] == "FailJob" and caught.value.exit_status not in final["onExitCodes"]["values"]
