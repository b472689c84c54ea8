"""What the Kubernetes manifests promise, as far as it can be seen without a cluster; wide.image holds them against
Kubernetes' own schemas.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.edge import Access
from gateway.settings import Settings
from gateway.wiring import build
from tests.deploy.dockerfile import read_dockerfile

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
Manifest = dict[str, Any]


def manifests() -> Iterator[tuple[str, Manifest]]:
    for path in sorted(FOLDER.rglob("*.yaml")):
        for each in yaml.safe_load_all(path.read_text()):
            if "kind" in each:
                yield path.relative_to(FOLDER).as_posix(), each


ALL = list(manifests())
PODS = {each["metadata"]["name"]: each["spec"]["template"] for _, each in ALL if each["kind"] in {"Deployment", "Job"}}
DEPLOYMENTS = {each["metadata"]["name"]: each["spec"] for _, each in ALL if each["kind"] == "Deployment"}


def of_kind(kind: str) -> list[Manifest]:
    return [each for _, each in ALL if each["kind"] == kind]


def container(name: str) -> Manifest:
    found: Manifest = PODS[name]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize(
    "folder", [path.parent for path in FOLDER.rglob("kustomization.yaml")], ids=lambda path: path.name
)
def test_kustomize_finds_every_file_and_leaves_out_no_other(folder: Path) -> None:
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    assert set(listed) == there


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_as_restricted_as_kubernetes_knows(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["automountServiceAccountToken"] is False
    own = pod["securityContext"]
    assert (own["runAsNonRoot"], own["runAsUser"], own["seccompProfile"]) == (True, 10001, {"type": "RuntimeDefault"})
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not any("hostPath" in volume for volume in pod.get("volumes", []))
    for each in pod["containers"]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in each["resources"]["limits"]
        assert not each["image"].endswith(":latest")
        assert ":" in each["image"]


def test_the_namespace_lets_nothing_less_in() -> None:
    assert of_kind("Namespace")[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_says_when_it_has_started_is_ready_and_lives(name: str) -> None:
    each = container(name)
    ports = {port["name"] for port in each["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert each[probe]["httpGet"]["port"] in ports


async def test_probes_ask_for_what_the_edge_answers(tmp_path: Path) -> None:
    platform = build(Settings(data_dir=tmp_path))
    open_paths = {row.path for row in platform.edge.endpoints if row.method == "GET" and row.access is Access.OPEN}
    await platform.dispose()
    gateway = container("gateway")
    asked = {probe: gateway[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert asked == {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    assert set(asked.values()) <= open_paths
    assert PODS["gateway"]["metadata"]["annotations"]["prometheus.io/path"] in open_paths
    for path in (ROOT / "deploy/Dockerfile", ROOT / "deploy/translator.Dockerfile"):
        assert "'/healthz'" in read_dockerfile(path)[-1].healthcheck[-1]


@pytest.mark.parametrize("name", ["gateway", "translator"])
def test_a_new_release_takes_none_away_before_another_is_ready(name: str) -> None:
    assert DEPLOYMENTS[name]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert any(budget["metadata"]["name"] == name for budget in of_kind("PodDisruptionBudget"))
    assert PODS[name]["spec"]["topologySpreadConstraints"]


def test_a_stop_lets_open_turns_end() -> None:
    drain = float(of_kind("ConfigMap")[0]["data"]["PENSTOCK_DRAIN_SECONDS"])
    before = container("gateway")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert PODS["gateway"]["spec"]["terminationGracePeriodSeconds"] >= before + drain + 15


def test_there_are_two_gateways_or_more_and_an_apply_takes_none_back() -> None:
    scalers = [each["spec"] for each in of_kind("HorizontalPodAutoscaler") if each["metadata"]["name"] == "gateway"]
    assert len(scalers) == 2, "one by CPU, one by a metric of ours"
    assert all(each["minReplicas"] >= 2 for each in scalers)
    assert "replicas" not in DEPLOYMENTS["gateway"]
    assert "replicas" not in DEPLOYMENTS["vllm"]
    assert DEPLOYMENTS["translator"]["replicas"] >= 2


def test_autoscalers_read_what_the_adapter_makes() -> None:
    rules = yaml.safe_load((FOLDER / "adapter/rules.yaml").read_text())["rules"]
    made = {rule["name"]["as"] for rule in rules}
    read = {
        metric["pods"]["metric"]["name"]
        for scaler in of_kind("HorizontalPodAutoscaler")
        for metric in scaler["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    assert read == made


def test_nothing_is_reached_that_is_not_named() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind("NetworkPolicy")}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name in PODS:
        assert policies[name]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == name
    for policy in policies.values():
        for rule in policy.get("egress", []):
            for to in rule["to"]:
                if to.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                    assert "169.254.0.0/16" in to["ipBlock"]["except"], "the cloud's keys lie there"


def test_selectors_select_what_they_are_for() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in PODS.items()}
    for service in of_kind("Service"):
        assert service["spec"]["selector"].items() <= labels[service["metadata"]["name"]].items()
    for name, spec in DEPLOYMENTS.items():
        assert spec["selector"]["matchLabels"].items() <= labels[name].items()
    for budget in of_kind("PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels[budget["metadata"]["name"]].items()


@pytest.mark.parametrize("name", ["gateway", "migrate"])
def test_secrets_are_files_that_the_process_looks_for(name: str) -> None:
    secret, config = of_kind("Secret")[0], of_kind("ConfigMap")[0]
    pod = PODS[name]["spec"]
    volume = {each["name"]: each for each in pod["volumes"]}["secrets"]["secret"]
    mount = {each["name"]: each for each in container(name)["volumeMounts"]}["secrets"]
    assert volume["secretName"] == secret["metadata"]["name"]
    assert volume["defaultMode"] == 0o440, "its group may read it, nobody else"
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    assert mount["mountPath"] == config["data"]["PENSTOCK_SECRETS_DIR"]
    assert container(name)["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]


def test_the_template_of_secrets_is_empty_and_whole() -> None:
    secret, config = of_kind("Secret")[0], of_kind("ConfigMap")[0]
    assert set(secret["stringData"].values()) == {""}
    wanted = {f"PENSTOCK_{name.upper()}" for name in ("database_url", "redis_url", "key_pepper", "master_key")}
    assert wanted <= secret["stringData"].keys()
    assert not secret["stringData"].keys() & config["data"].keys()
    for env in container("translator")["env"]:
        assert env["valueFrom"]["secretKeyRef"]["key"] in secret["stringData"]
