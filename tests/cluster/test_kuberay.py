"""deploy/kuberay.yaml and examples/ray_serve: what they name exists, for Ray, for KubeRay and for Kubernetes."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'offramp[ray]'")

import ray
from ray.serve.schema import ServeDeploySchema

from offramp.cluster.ray_serve import build
from support.models import save_folder, tiny_model

ROOT = Path(__file__).parents[2]
SERVICE = yaml.safe_load((ROOT / "deploy" / "kuberay.yaml").read_text(encoding="utf-8"))
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
CONFIGS = {
    "kuberay": yaml.safe_load(SERVICE["spec"]["serveConfigV2"]),
    "example": yaml.safe_load((ROOT / "examples" / "ray_serve" / "serve.yaml").read_text(encoding="utf-8")),
}
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
OBJECT, TEXT, NUMBER, FLAG = dict, str, int, bool
FIELDS: dict[str, dict[str, tuple[type, bool]]] = {  # name: (type, whether it must be there), as in KubeRay's own types
    "spec": {"serveConfigV2": (TEXT, True), "rayClusterConfig": (OBJECT, True)},
    "cluster": {
        "rayVersion": (TEXT, True),
        "authOptions": (OBJECT, False),
        "enableInTreeAutoscaling": (FLAG, False),
        "autoscalerOptions": (OBJECT, False),
        "headGroupSpec": (OBJECT, True),
        "workerGroupSpecs": (list, True),
    },
    "head": {"rayStartParams": (OBJECT, True), "template": (OBJECT, True)},
    "worker": {
        "groupName": (TEXT, True),
        "replicas": (NUMBER, False),
        "minReplicas": (NUMBER, True),
        "maxReplicas": (NUMBER, True),
        "rayStartParams": (OBJECT, True),
        "template": (OBJECT, True),
    },
}


def check(given: dict[str, Any], fields: dict[str, tuple[type, bool]]) -> None:
    assert set(given) <= set(fields)
    assert {name for name, (_, required) in fields.items() if required} <= set(given)
    assert [name for name, value in given.items() if type(value) is not fields[name][0]] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_ray_takes_the_config(name: str) -> None:
    config = ServeDeploySchema.model_validate(CONFIGS[name])
    assert [application.import_path for application in config.applications] == ["offramp.cluster.ray_serve:build"]
    assert config.model_dump(exclude_unset=True) == CONFIGS[name]  # Ray drops what it does not know


@pytest.mark.parametrize("name", CONFIGS)
def test_the_arguments_are_those_of_the_deployment(name: str) -> None:
    (application,) = CONFIGS[name]["applications"]
    deployment = build(application["args"])._bound_deployment
    assert deployment.ray_actor_options["num_cpus"] == application["args"]["num_cpus"]
    assert [one["name"] for one in application.get("deployments", [])] in ([], [deployment.name])


def test_kuberay_knows_every_field() -> None:
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    check(SERVICE["spec"], FIELDS["spec"])
    check(CLUSTER, FIELDS["cluster"])
    check(CLUSTER["headGroupSpec"], FIELDS["head"])
    for group in CLUSTER["workerGroupSpecs"]:
        check(group, FIELDS["worker"])
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert CLUSTER["authOptions"] in ({"mode": "token"}, {"mode": "disabled"})
    assert [name for name in CLUSTER["autoscalerOptions"] if name not in ("idleTimeoutSeconds", "upscalingMode")] == []
    for group in GROUPS:  # they become options of `ray start`, which are text
        assert {type(value) for value in group["rayStartParams"].values()} <= {str}


def test_replicas_fit_into_the_pods() -> None:
    (application,) = CONFIGS["kuberay"]["applications"]
    wanted, (group,) = application["args"], CLUSTER["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cores = int(group["rayStartParams"]["num-cpus"])
    assert wanted["num_cpus"] == cores < int(container["resources"]["limits"]["cpu"])
    assert wanted["max_replicas"] <= group["maxReplicas"]
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > wanted["limits"]["drain_s"] + 10
    assert wanted["model"]["folder"] in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_versions_are_one_and_this_one() -> None:
    images = {container["image"] for group in GROUPS for container in group["template"]["spec"]["containers"]}
    assert images == {f"offramp-ray:{CLUSTER['rayVersion']}"}
    assert tuple(CLUSTER["rayVersion"].split(".")[:2]) <= tuple(ray.__version__.split(".")[:2])


def test_probes_ask_paths_that_ray_answers() -> None:
    ports = {"dashboard": "/api/gcs_healthz", "serve": "/-/healthz", "agent": "/api/local_raylet_healthz"}
    for group in GROUPS:
        (container,) = group["template"]["spec"]["containers"]
        named = {port["name"] for port in container["ports"]}
        for probe in (container["readinessProbe"], container["livenessProbe"]):
            ask = probe["httpGet"]
            assert ask["port"] in named
            assert ports[ask["port"]] == ask["path"]
    sources = {path: (Path(ray.__file__).parent / path).read_text(encoding="utf-8") for path in ANSWERED}
    assert [(path, text) for path, text in ANSWERED.items() if text not in sources[path]] == []


ANSWERED = {
    "dashboard/modules/reporter/reporter_head.py": '"/api/gcs_healthz"',
    "dashboard/modules/reporter/healthz_agent.py": '"/api/local_raylet_healthz"',
    "serve/_private/proxy_request_response.py": '"/-/healthz"',
    "_private/ray_constants.py": "DEFAULT_DASHBOARD_AGENT_LISTEN_PORT = 52365",
}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids=["head", "worker"])
def test_kubernetes_takes_the_pods(group: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed: pip install kubernetes-validate"
    )
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": group["template"]["spec"]}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**pod, "spec": {**pod["spec"], "container": []}}, kubernetes_validate.latest_version(), strict=True
        )


def test_the_example_is_an_application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder(tmp_path / "model", tiny_model())
    monkeypatch.setenv("MODEL", str(folder))
    monkeypatch.setenv("LADDER", "1")
    monkeypatch.setenv("CORES", "2")
    app = runpy.run_path(str(ROOT / "examples" / "ray_serve" / "app.py"))["app"]
    servers, cores = app._bound_deployment.init_args
    assert (cores, servers[""].model.folder) == (2, str(folder))
    assert servers[""].ladder is not None
