"""Kubernetes objects that run a job by the clock: a CronJob that creates a KubeRay RayJob, and what both need.

The cluster of a run is its own: a head that runs no tasks, groups of workers that begin at none and grow by Ray's
autoscaler while work waits for room, and nothing once the run is over. The pod of the CronJob stays until the run has
ended (``launch``): so ``concurrencyPolicy: Forbid`` keeps two runs apart, its log is the run's, and so is its status.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from curation.deploy.packing import CONFIG
from curation.deploy.request import Request
from curation.deploy.settings import LABEL, NAME_LENGTH, PodConfig, PoolConfig, ScheduleConfig, SubmitConfig
from curation.errors import RequestError, require
from curation.runtime import versions

Object = dict[str, Any]

MOUNT = "/etc/curate"  # where the pods find the ConfigMap
RAYJOB = "rayjob.yaml"
CRON = re.compile(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)|\S+( \S+){4}")
GPU = "nvidia.com/gpu"


def render(request: Request) -> list[Object]:
    """All objects, in the order in which they are to be created.

    Args:
        request: the job; ``schedule`` of its config says when and on what.

    Raises:
        RequestError: something that Kubernetes or KubeRay would refuse.
    """
    settings = request.config.schedule
    name = settings.name or f"curate-{request.job}"
    require(settings.image is not None, "schedule.image is missing: add schedule.image=IMAGE, see docker/Dockerfile")
    ok = CRON.fullmatch(settings.cron.strip()) is not None
    require(ok, f"schedule.cron={settings.cron}: give minute, hour, day, month and weekday, such as 0 3 * * *")
    require(LABEL.fullmatch(name) is not None and len(name) <= NAME_LENGTH, f"schedule.name={name} is no short label")
    alone = request.config.submit == SubmitConfig()
    require(alone, "submit.* is for curate submit: what this job needs is in schedule.image and schedule.secret")
    data = {RAYJOB: as_yaml([ray_job(request, name)]) + "\n"}
    if request.file is not None:
        try:
            data[CONFIG] = request.file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"config={request.file} cannot be read as text") from error
    return [
        _object("v1", "ServiceAccount", name, settings),
        _object(
            "rbac.authorization.k8s.io/v1",
            "Role",
            name,
            settings,
            rules=[{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}],
        ),
        _object(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            name,
            settings,
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            subjects=[{"kind": "ServiceAccount", "name": name, "namespace": settings.namespace}],
        ),
        _object("v1", "ConfigMap", name, settings, data=data),
        _object("batch/v1", "CronJob", name, settings, spec=_cron(settings, name)),
    ]


def ray_job(request: Request, name: str) -> Object:
    """The RayJob (KubeRay 1.4 and later) that each run begins with."""
    settings = request.config.schedule
    grows = {"CPU": settings.cpu.max * settings.cpu.cpu + settings.gpu.max * settings.gpu.cpu}
    workers = [_workers("cpu", settings.cpu, 0, settings)]
    if settings.gpu.max:
        grows["GPU"] = settings.gpu.max * settings.gpu.gpu
        workers.append(_workers("gpu", settings.gpu, settings.gpu.gpu, settings))
    more = [] if request.config.runtime.autoscale else [f"runtime.autoscale={_flow(grows)}"]
    head = _pod("ray-head", settings.head, 0, settings)
    head["containers"][0]["ports"] = [
        {"name": port, "containerPort": number} for port, number in (("gcs", 6379), ("dashboard", 8265))
    ]
    if request.file is not None:
        head["containers"][0]["volumeMounts"] = [{"name": "config", "mountPath": MOUNT}]
        head["volumes"] = [{"name": "config", "configMap": {"name": name}}]
    cluster = {
        "rayVersion": versions(["ray"])["ray"],
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 300},
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
            "template": {"metadata": {"labels": _labels(name)}, "spec": head},
        },
        "workerGroupSpecs": workers,
    }
    spec = {
        "entrypoint": request.command(f"{MOUNT}/{CONFIG}" if request.file else None, *more),
        "submissionMode": "HTTPMode",  # the operator hands the line over as it is; the CLI would quote it anew
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": settings.keep,
        "backoffLimit": settings.retries,
        "rayClusterSpec": cluster,
    }
    return _object("ray.io/v1", "RayJob", name, settings, spec=spec)


def _cron(settings: ScheduleConfig, name: str) -> Object:
    """The CronJob's spec. Its pod is made anew when its node goes, and finds its RayJob by name."""
    identity = [
        {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['batch.kubernetes.io/{label}']"}}}
        for variable, label in (("JOB_NAME", "job-name"), ("JOB_UID", "controller-uid"))
    ]
    container = {
        "name": "launch",
        "image": settings.image,
        "command": ["python", "-m", "curation.cli", "schedule", "launch", f"{MOUNT}/{RAYJOB}"],
        "env": identity,
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": [{"name": "config", "mountPath": MOUNT}],
    }
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": name,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": name}}],
    }
    over = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    moved = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    job = {
        "backoffLimit": 3,
        "podFailurePolicy": {"rules": [moved, over]},
        "template": {"metadata": {"labels": _labels(name)}, "spec": pod},
    }
    return {
        "schedule": settings.cron.strip(),
        "timeZone": settings.time_zone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"metadata": {"labels": _labels(name)}, "spec": job},
    }


def _workers(group: str, pool: PoolConfig, gpus: int, settings: ScheduleConfig) -> Object:
    """A group of workers that begins at none, on preemptible nodes where there are such."""
    spec = _pod("ray-worker", pool, gpus, settings)
    if settings.spot.selector:
        spec["nodeSelector"] = {str(key): _text(value) for key, value in settings.spot.selector.items()}
    if settings.spot.tolerations:
        spec["tolerations"] = settings.spot.tolerations
    return {
        "groupName": group,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": pool.max,
        "rayStartParams": {},
        "template": {"spec": spec},
    }


def _pod(container: str, pod: PodConfig, gpus: int, settings: ScheduleConfig) -> Object:
    """A pod of a Ray cluster; Ray counts what its limits say."""
    limits = {"cpu": str(pod.cpu), "memory": pod.memory, **({GPU: str(gpus)} if gpus else {})}
    described: Object = {
        "name": container,
        "image": settings.image,
        "resources": {"limits": limits, "requests": limits},
    }
    if settings.secret:
        described["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    account = {"serviceAccountName": settings.service_account} if settings.service_account else {}
    return {"restartPolicy": "Never", **account, "containers": [described]}  # version 2 of the autoscaler asks for it


def _object(version: str, kind: str, name: str, settings: ScheduleConfig, **rest: Any) -> Object:
    metadata = {"name": name, "namespace": settings.namespace, "labels": _labels(name)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "curation", "app.kubernetes.io/instance": name}


def _text(value: Any) -> str:
    """A label's value: YAML's true is the word."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flow(counts: dict[str, int]) -> str:
    return "{" + ", ".join(f"{name}: {count}" for name, count in counts.items()) + "}"


def as_yaml(objects: list[Object]) -> str:
    """The objects as one YAML stream; the same objects give the same text."""
    text: str = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=120, explicit_start=True)
    return text.rstrip("\n")


def write_files(objects: list[Object], folder: Path) -> list[Path]:
    """One file an object, called after its kind; they are numbered in the order of creation.

    Raises:
        RequestError: they cannot be written there.
    """
    files = [folder / f"{number}-{each['kind'].lower()}.yaml" for number, each in enumerate(objects)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, each in zip(files, objects, strict=True):
            file.write_text(as_yaml([each]) + "\n")
    except OSError as error:
        raise RequestError(f"--output {folder}: cannot write {error.filename}: {error.strerror}") from error
    return files


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Texts of several lines as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)
