"""What deploy/compose.yaml promises, as far as it can be seen without an engine."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.compose import Unset, interpolated, read_compose, variables

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = read_compose(DEPLOY / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
REQUIRED = sorted({each.name for each in variables(COMPOSE) if each.operator == ":?"})
BUILT_HERE = ("penstock", "penstock-translator", "penstock-vllm")


@pytest.fixture(scope="module")
def filled_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The .env that the recipe in .env.example makes, run as it stands there."""
    folder = tmp_path_factory.mktemp("env")
    example = (DEPLOY / ".env.example").read_text()
    (folder / ".env.example").write_text(example)
    recipe = "\n".join(
        line.removeprefix("#") for line in example.splitlines() if line.startswith(("#   (", "#    printf"))
    )
    subprocess.run(["sh", "-euc", recipe], cwd=folder, check=True)
    assert (folder / ".env").stat().st_mode & 0o077 == 0
    lines = [line for line in (folder / ".env").read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def services(filled_in: dict[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = interpolated(COMPOSE, filled_in)["services"]
    return found


def test_every_variable_is_required_with_its_cure_or_has_a_default() -> None:
    for each in variables(COMPOSE):
        assert each.operator in {":?", ":-"}, f"{each.name}: compose would make it empty and only warn"
        assert each.operator == ":-" or "openssl rand" in each.word, f"{each.name}: say how it is made"


@pytest.mark.parametrize("name", REQUIRED)
def test_a_variable_that_nobody_sets_fails(name: str, filled_in: dict[str, str]) -> None:
    with pytest.raises(Unset, match=name):
        interpolated(COMPOSE, {key: value for key, value in filled_in.items() if key != name})
    with pytest.raises(Unset, match=name):
        interpolated(COMPOSE, filled_in | {name: ""})


def test_the_example_names_every_variable_and_holds_no_secret(filled_in: dict[str, str]) -> None:
    text = (DEPLOY / ".env.example").read_text()
    assert sorted(re.findall(r"^([A-Z_]+)=$", text, re.MULTILINE)) == REQUIRED
    assert not re.findall(r"^[A-Z_]+=.+$", text, re.MULTILINE), "a value in the example is a value in production"
    shown = dict(re.findall(r"^#([A-Z_]+)=(.+)$", text, re.MULTILINE))
    assert shown == {each.name: each.word for each in variables(COMPOSE) if each.operator == ":-"}
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in filled_in.values())
    assert len(set(filled_in.values())) == len(filled_in) == len(REQUIRED)


def test_no_password_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|KEY|PEPPER|_URL", key) and "://" not in value:
                assert "${" in value, f"{name}: {key}"
        assert not re.search(r"://[^$/]*:[^$/@]+@", str(service)), name


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_right_and_no_room_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() >= {"cpus", "memory", "pids"}
    assert not {"network_mode", "pid", "ipc", "env_file"} & service.keys()
    if "build" not in service:  # those built here say so themselves
        assert not str(service["user"]).startswith("0")


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned(name: str, services: dict[str, dict[str, Any]]) -> None:
    image, _, tag = services[name]["image"].rpartition(":")
    assert re.search(r"\d+\.\d+\.\d+|\d+\.\d+-", tag), f"{name}: {tag} will be another image tomorrow"
    assert image in BUILT_HERE or "build" not in services[name]


@pytest.mark.parametrize("name", SERVICES)
def test_somebody_says_whether_it_is_well(name: str) -> None:
    service = SERVICES[name]
    check = service.get("healthcheck")
    if check is None:
        assert "build" in service, f"{name}: no healthcheck, neither here nor in an image of ours"
    else:
        assert check.get("disable") or check["test"][0] in {"CMD", "CMD-SHELL"}
        assert not check.get("disable") or service["restart"] == "no", "only what ends by itself has none"


def test_what_depends_waits_until_it_is_well() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} waits for {other}"
            ends = SERVICES[other].get("restart") == "no"
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")
    gateways = {name: each for name, each in SERVICES.items() if each.get("command") == ["serve"]}
    assert len(gateways) >= 2
    assert all("migrate" in each["depends_on"] for each in gateways.values())


def test_every_file_it_names_is_there(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        build = service.get("build")
        if build:
            folder = DEPLOY / build["context"]
            assert (folder / build.get("dockerfile", "Dockerfile")).is_file(), name
        for source, _, _ in _mounts(service):
            if source.startswith(".") and name != "vllm":  # whose model is the operator's
                assert (DEPLOY / source).exists(), f"{name}: {source}"
            elif not source.startswith("."):
                assert source in COMPOSE["volumes"], f"{name}: {source}"
        assert set(service["networks"]) <= COMPOSE["networks"].keys(), name


def test_only_what_keeps_state_can_be_written_to(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for source, target, mode in _mounts(service):
            assert not source.startswith((".", "/")) or mode == "ro", f"{name}: {target}"
    for name in ("gateway-1", "gateway-2", "migrate", "balancer"):
        assert all(mode == "ro" for _, _, mode in _mounts(services[name])), name
        assert "tmpfs" not in services[name], name


def test_nothing_is_published_but_to_this_machine(services: dict[str, dict[str, Any]]) -> None:
    published = {name: each["ports"] for name, each in services.items() if "ports" in each}
    assert published == {"balancer": ["127.0.0.1:8080:8080"], "grafana": ["127.0.0.1:3000:3000"]}


def test_stores_are_reached_from_the_inside_only(services: dict[str, dict[str, Any]]) -> None:
    for name in ("postgres", "redis", "qdrant"):
        assert services[name]["networks"] == ["stores"]
    assert COMPOSE["networks"]["stores"] == {"internal": True}


def test_a_stop_lets_open_turns_end(services: dict[str, dict[str, Any]]) -> None:
    balancer = _seconds(services["balancer"]["stop_grace_period"])
    for name in ("gateway-1", "gateway-2"):
        drain = float(services[name]["environment"]["PENSTOCK_DRAIN_SECONDS"])
        assert _seconds(services[name]["stop_grace_period"]) >= drain + 15
        assert balancer >= drain + 15


def test_the_balancer_sends_again_only_what_never_left(services: dict[str, dict[str, Any]]) -> None:
    lines = [line.strip() for line in (DEPLOY / "balancer/haproxy.cfg").read_text().splitlines()]
    assert [line for line in lines if line.startswith("retry-on")] == ["retry-on conn-failure"]
    servers = [line.split()[1:3] for line in lines if line.startswith("server ")]
    gateways = sorted(name for name, each in services.items() if each.get("command") == ["serve"])
    assert servers == [[name, f"{name}:8080"] for name in gateways]


def test_prometheus_and_grafana_find_what_they_are_given(services: dict[str, dict[str, Any]]) -> None:
    read = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())
    known = services.keys() | {alias for each in services.values() for alias in _aliases(each)}
    for job in read["scrape_configs"]:
        token = job.get("authorization", {}).get("credentials_file")
        assert token is None or f"> {token}\n" in str(services["prometheus"]["command"][0]), "nobody writes it"
        for found in job.get("static_configs", []):
            for target in found["targets"]:
                assert target.partition(":")[0] in {*known, "127.0.0.1"}, f"nothing here is called {target}"
        for found in job.get("dns_sd_configs", []):
            assert set(found["names"]) <= known
    assert all((DEPLOY / "prometheus" / name).exists() for name in read.get("rule_files", []))
    mounted = [target for _, target, _ in _mounts(services["grafana"])]
    for path in (DEPLOY / "grafana/provisioning").rglob("*.y*ml"):
        for provider in yaml.safe_load(path.read_text()).get("providers", []):
            assert any(provider["options"]["path"].startswith(target) for target in mounted), provider
    assert list((DEPLOY / "grafana/dashboards").glob("*.json"))


def _mounts(service: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for each in service.get("volumes", []):
        source, target, *mode = each.split(":")
        yield source, target, mode[0] if mode else "rw"


def _aliases(service: dict[str, Any]) -> list[str]:
    networks = service["networks"]
    return (
        [alias for each in networks.values() if each for alias in each.get("aliases", [])]
        if isinstance(networks, dict)
        else []
    )


def _seconds(period: str) -> float:
    return float(period.removesuffix("s"))
