"""What deploy/ says, as far as that can be checked without a cluster."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("kubernetes_validate") is None:
    pytest.skip("needs .venv-scale: make test-scale", allow_module_level=True)

import kubernetes_validate
import ray
import yaml
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from clipserve.endpoints import ENDPOINTS
from scale.bulk.__main__ import _parser
from scale.serve import application
from scale.serve.application import AppArguments
from scale.serve.tokens import KINDS, TokenCheck, write_key_file
from serving.local import ROOT

DEPLOY = ROOT / "deploy"
STORE = ROOT / "model_store" / "demo"
CLUSTERS = {"rayservice.yaml": "rayClusterConfig", "rayjob.yaml": "rayClusterSpec"}


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return found


def groups(name: str) -> list[dict[str, Any]]:
    cluster = manifest(name)["spec"][CLUSTERS[name]]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def serve_config() -> ServeDeploySchema:
    text = manifest("rayservice.yaml")["spec"]["serveConfigV2"]
    return ServeDeploySchema.model_validate(yaml.safe_load(text))


def test_the_serve_config_is_rays() -> None:
    config = serve_config()
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)
    assert config.logging_config is not None
    assert not config.logging_config.enable_access_log


def test_the_serve_config_builds_our_application(tmp_path: Path) -> None:
    """With another folder for the volumes: the same arguments, checked and used by the same function."""
    (app,) = serve_config().applications
    module, _, name = app.import_path.partition(":")
    assert module == application.__name__
    write_key_file(tmp_path / "key_file.json")
    arguments = app.args | {"store": str(STORE), "key_file": str(tmp_path / "key_file.json")}
    # As Ray Serve itself calls it: with a dict, which becomes what the parameter's type says.
    built = call_user_app_builder_with_args_if_necessary(getattr(application, name), arguments)
    assert isinstance(built, ray.serve.Application)
    assert {deployment.name for deployment in app.deployments} <= {"ingress", *ENDPOINTS}
    grown = {}
    for deployment in build_app(built, name="clipserve").deployments:
        scaling = deployment._deployment_config.autoscaling_config
        grown[deployment.name] = scaling and (scaling.min_replicas, scaling.max_replicas)
    assert grown == {"ingress": None, **dict.fromkeys(ENDPOINTS, (1, 8))}


def test_the_serve_config_says_no_argument_that_is_not_there() -> None:
    (app,) = serve_config().applications
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        AppArguments.model_validate(app.args | {"no_such_argument": "x"})


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_are_kubernetes_pods(name: str) -> None:
    for group in groups(name):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)


def test_the_schema_would_find_a_mistake() -> None:
    (head, *_) = groups("rayservice.yaml")
    head["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **head["template"]},
            "1.34",
            strict=True,
        )


@pytest.mark.parametrize("name", CLUSTERS)
def test_nothing_runs_as_root_nor_without_rays_token(name: str) -> None:
    cluster = manifest(name)["spec"][CLUSTERS[name]]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in groups(name):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            # ATTACKS D: what Ray and the job write has a place for it.
            written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert {"/tmp", "/home/clipserve"} <= written
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_the_deployment_pages_probes_are_kubernetes() -> None:
    """ATTACKS D: the one snippet in YAML, in a container."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    container = {"name": "torchserve", "image": "x", **yaml.safe_load(snippet)}
    assert {"readinessProbe", "livenessProbe"} <= set(container)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [container]}}
    kubernetes_validate.validate(pod, "1.34", strict=True)


def policies() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "networkpolicy.yaml").read_text(encoding="utf-8")))


def test_network_policies() -> None:
    """ATTACKS D. No rule is open to everybody, and the ports are those that the manifests serve."""
    rays, autoscaler = policies()
    for policy in (rays, autoscaler):
        kubernetes_validate.validate(policy, "1.34", strict=True)
    assert rays["spec"]["policyTypes"] == ["Ingress", "Egress"]
    node = {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert rays["spec"]["podSelector"] == node
    for rule in rays["spec"]["ingress"]:
        (peer,) = rule["from"]
        if peer.get("podSelector") != node:
            assert peer.get("podSelector") or peer["namespaceSelector"]["matchLabels"]
            assert {port["port"] for port in rule["ports"]} <= {8000, 8265, 52365}
    assert all(rule["to"] for rule in rays["spec"]["egress"])
    # Only the head, which has the autoscaler, leaves the cluster.
    assert autoscaler["spec"]["podSelector"] == {"matchLabels": {"ray.io/node-type": "head"}}
    assert autoscaler["spec"]["policyTypes"] == ["Egress"]
    served = {
        port["containerPort"]
        for group in groups("rayservice.yaml")
        for c in group["template"]["spec"]["containers"]
        for port in c.get("ports", [])
    }
    assert {8000, 8265} <= served
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert "kubectl apply -f deploy/networkpolicy.yaml" in readme


def test_the_page_says_what_was_done() -> None:
    """CASES 72."""
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert "by eye" not in readme
    assert "ray-operator 1.6.0's Go types" in readme
    files = set(re.findall(r"^\| `(\S+)` \|", readme, re.MULTILINE))
    assert files == {path.name for path in DEPLOY.iterdir()} - {"README.md", "Dockerfile.dockerignore"}


@pytest.mark.parametrize("name", CLUSTERS)
def test_versions_agree(name: str) -> None:
    assert manifest(name)["spec"][CLUSTERS[name]]["rayVersion"] == ray.__version__
    tagged = {
        container["image"] for group in groups(name) for container in group["template"]["spec"]["containers"]
    }
    assert tagged == {"clipserve-scale:latest"}


def test_paths_are_mounted() -> None:
    (app,) = serve_config().applications
    for group in groups("rayservice.yaml"):
        (container,) = group["template"]["spec"]["containers"]
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        for name in ("store", "key_file"):
            assert any(Path(app.args[name]).is_relative_to(path) for path in paths), name


def test_the_job_is_a_command_of_the_bulk_room() -> None:
    program, option, module, *words = shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])
    assert (program, option, module) == ("python", "-m", "scale.bulk")
    arguments = _parser().parse_args(words)
    paths = [
        mount["mountPath"]
        for group in groups("rayjob.yaml")
        for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
    ]
    for path in (arguments.images, arguments.table, arguments.store):
        assert any(path.is_relative_to(mounted) for mounted in paths), path


def test_the_image_holds_what_is_imported() -> None:
    """Every folder that the manifests' programs import is copied, and nothing needs root."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = set(re.findall(r"^COPY (\w+) \./\1$", text, re.MULTILINE))
    assert copied == {"clipserve", "pictures", "scale", "serving", "handlers"}
    users = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    contexts = {
        group["template"]["spec"]["securityContext"]["runAsUser"]
        for name in CLUSTERS
        for group in groups(name)
    }
    assert {int(user) for user in users} == contexts
    # The base image is named once, by a version, and may be named by a digest.
    assert re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE) == ["python:3.12.12-slim-bookworm"]
    assert re.findall(r"^FROM (\S+) AS", text, re.MULTILINE) == [
        "${PYTHON_IMAGE}",
        "${PYTHON_IMAGE}",
        "scale",
    ]


def test_a_key_file_is_for_its_owner_and_says_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    write_key_file(path)
    first = yaml.safe_load(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    write_key_file(path)
    second = yaml.safe_load(path.read_text())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    keys = [made[kind]["key"] for made in (first, second) for kind in KINDS]
    assert len(set(keys)) == 4
    check = TokenCheck(path)
    assert check.holds(f"Bearer {keys[2]}", "inference")
    assert not check.holds(f"Bearer {keys[2]}", "management")
    assert not check.holds(keys[2], "inference")
    assert not check.holds("", "inference")
    assert not check.holds(f"Bearer {keys[0]}", "inference")
