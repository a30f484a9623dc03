"""What goes along with a job: files of this machine, requirements, and variables by name (Ray's ``runtime_env``)."""

import hashlib
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.deploy.settings import SubmitConfig
from curation.errors import RequestError, require
from curation.storage.options import names_secret

LEFT_OUT = {".git", ".venv", "__pycache__"}
CONFIG = "curate-config.yaml"  # what the file of config=FILE is called there
WORKING_DIR = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"  # Ray puts the folder in, for pip


@dataclass
class Package:
    """A job's runtime environment.

    Attributes:
        runtime_env: as Ray takes it.
        contents: what it is made of, files by hash, but for the config file, whose content the job's config is.
        config: what the config file is called in it.
    """

    runtime_env: dict[str, Any] = field(default_factory=dict)
    contents: dict[str, Any] = field(default_factory=dict)
    config: str | None = None


def pack(settings: SubmitConfig, config: Path | None, folder: Path) -> Package:
    """Make the runtime environment; nothing is uploaded where nothing of this machine is needed.

    Args:
        settings: what is asked for.
        config: the file of ``config=FILE``.
        folder: for the archive of what is uploaded.

    Raises:
        RequestError: a file is not there, or a variable is a secret or not set.
    """
    package = Package()
    files = _files(settings, config)
    if config is not None:
        package.config = CONFIG
        files[CONFIG] = config
    requirements = list(settings.pip or [])
    if settings.wheel is not None:
        wheel = Path(settings.wheel)
        files[wheel.name] = wheel
        requirements.append(f"{WORKING_DIR}/{wheel.name}")
    if files:
        archive = folder / "working_dir.zip"
        hashes = _archive(files, archive)
        if sent := {name: digest for name, digest in hashes.items() if name != CONFIG}:
            package.contents["files"] = sent
        package.runtime_env["working_dir"] = str(archive)
    elif settings.working_dir is not None:
        package.runtime_env["working_dir"] = package.contents["working_dir"] = settings.working_dir
    if requirements:
        package.runtime_env["pip"] = package.contents["pip"] = requirements
    if settings.env:
        package.runtime_env["env_vars"] = package.contents["env"] = _variables(settings.env)
    return package


def _files(settings: SubmitConfig, config: Path | None) -> dict[str, Path]:
    """What the local working directory holds, by path below it."""
    if settings.working_dir is None:
        return {}
    if "://" in settings.working_dir:
        for what, there in (("submit.wheel", settings.wheel), ("config=FILE", config)):
            require(there is None, f"{what} goes with a local submit.working_dir, or without one")
        return {}
    root = Path(settings.working_dir)
    require(root.is_dir(), f"submit.working_dir={root}: there is no such folder")
    found = [path for path in root.rglob("*") if path.is_file()]
    named = {path.relative_to(root): path for path in found}
    return {name.as_posix(): path for name, path in named.items() if not LEFT_OUT.intersection(name.parts)}


def _archive(files: dict[str, Path], target: Path) -> dict[str, str]:
    """Write a zip that is the same for the same files, so that Ray uploads it once; the SHA-256 of each file."""
    hashes = {}
    try:
        with zipfile.ZipFile(target, "w") as archive:
            for name in sorted(files):
                data = files[name].read_bytes()
                hashes[name] = hashlib.sha256(data).hexdigest()
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise RequestError(f"cannot send {error.filename}: {error.strerror}") from error
    return hashes


def _variables(names: list[str]) -> dict[str, str]:
    """The values that variables have here. Ray shows them to everybody who sees the job: no secrets."""
    for name in names:
        require(
            not names_secret(name),
            f"submit.env: {name} is a secret, and Ray would show it to all who see the job: "
            "give it to the cluster's nodes, by their environment, profile or role",
        )
        require(name in os.environ, f"submit.env: {name} is not set here")
    return {name: os.environ[name] for name in sorted(names)}
