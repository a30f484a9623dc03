"""docker/: a compose file that compose takes, of commands that exist, and an image that fits the pinned versions."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from curation.cli import take_option
from curation.deploy.request import read_request
from tests.s3 import s3_server

CHECKOUT = Path(__file__).parent.parent
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "compose-spec.json").read_text())


@pytest.fixture
def compose() -> dict[str, Any]:
    """The file, as compose reads it: with the value that a variable has when nobody sets it."""
    text = (CHECKOUT / "docker" / "compose.yaml").read_text()
    return dict(yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)))


def test_it_is_as_the_published_schema_has_it(compose):
    validator = jsonschema.Draft201909Validator(SCHEMA)
    validator.validate(compose)
    compose["services"]["job"]["strange"] = 1
    with pytest.raises(jsonschema.ValidationError, match="strange"):
        validator.validate(compose)


def test_services_name_what_there_is_and_only_this_machine_is_let_in(compose):
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or source.startswith(".")
    waits = {condition for each in services["job"]["depends_on"].values() for condition in each.values()}
    assert waits == {"service_healthy", "service_started", "service_completed_successfully"}
    keys = services["job"]["environment"]
    assert keys["AWS_ACCESS_KEY_ID"] == services["s3"]["environment"]["ROOT_ACCESS_KEY"]
    assert keys["AWS_SECRET_ACCESS_KEY"] == services["s3"]["environment"]["ROOT_SECRET_KEY"]


def test_its_commands_exist(compose):
    services = compose["services"]
    for command in (services["head"]["entrypoint"], services["worker"]["entrypoint"], health(services["head"])):
        program, name, *arguments = command
        assert program == "ray"
        ray_cli.commands[name].make_context(name, arguments)  # an unknown option is an error
    program, job, *ours = services["job"]["entrypoint"]
    assert (program, job) == ("curate", "submit")
    assert take_option(ours, "--address", "a URL") == "http://head:8265" and not ours
    request = read_request(services["job"]["command"], "")
    assert request.config.workspace is not None


def health(service: dict[str, Any]) -> list[str]:
    """The command that a health check runs."""
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    return command


def test_the_archive_is_loaded_into_the_bucket_however_often(compose, tmp_path):
    (tmp_path / "archive" / "2024").mkdir(parents=True)
    (tmp_path / "archive" / "2024" / "a.tar").write_bytes(b"tiles")
    (program,) = compose["services"]["load"]["command"]
    program = program.replace("/archive/", f"{tmp_path}/archive/", 1)
    with s3_server() as server:
        for _ in range(2):
            subprocess.run([sys.executable, "-c", program], check=True, env=environment(server.endpoint))
        found = server.client.list_objects_v2(Bucket="tiles")["Contents"]
    assert [each["Key"] for each in found] == ["archive/2024/a.tar"]


def environment(endpoint: str) -> dict[str, str]:
    """This process's, with the server's address as the compose file gives it."""
    return os.environ | {"AWS_ENDPOINT_URL": endpoint}


def test_the_image_has_the_pinned_ray_and_all_that_the_wheel_is_built_of():
    dockerfile = (CHECKOUT / "docker" / "Dockerfile").read_text()
    (version,) = re.findall(r"^ARG RAY=(\S+)", dockerfile, re.MULTILINE)
    assert f"ray=={version}\n" in (CHECKOUT / "constraints.txt").read_text()
    allowed = (CHECKOUT / ".dockerignore").read_text().splitlines()
    copied = " ".join(re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)).replace("./", "").split()
    assert copied and all(f"!{name}" in allowed and (CHECKOUT / name).exists() for name in copied)
