"""What the Dockerfiles promise, as far as it can be seen without an engine; wide.image builds and runs them."""

import re
import tomllib
from pathlib import Path

import pytest

from gateway.settings import Settings
from tests.deploy.dockerfile import Stage, read_dockerfile
from tests.deploy.machine import sent_files

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = {
    path.relative_to(DEPLOY).as_posix(): read_dockerfile(path) for path in sorted(DEPLOY.rglob("*ockerfile"))
}
PLACES = [*DEPLOY.rglob("*"), ROOT / "docs/guides/deployment.md"]
# Names that are no settings of the gateway: what the translator reads, in its own environment.
TRANSLATOR = set(re.findall(r"PENSTOCK_[A-Z_]+", (ROOT / "router/translator.py").read_text()))


@pytest.fixture(params=DOCKERFILES)
def stages(request: pytest.FixtureRequest) -> list[Stage]:
    return DOCKERFILES[request.param]


def test_there_is_one_for_each_process() -> None:
    assert DOCKERFILES.keys() == {"Dockerfile", "translator.Dockerfile", "vllm/Dockerfile"}


def test_a_base_image_is_pinned(stages: list[Stage]) -> None:
    assert len({stage.base for stage in stages}) == 1, "what is built with one Python runs with it"
    assert all(re.search(r":v?\d+\.\d+\.\d+", stage.base) for stage in stages)


def test_it_runs_as_a_number_that_is_not_root(stages: list[Stage]) -> None:
    user = stages[-1].last("USER")
    assert user is not None, "it would be root"
    assert user.text == "10001:10001", "Kubernetes believes numbers only"


def test_it_can_be_stopped_and_asked(stages: list[Stage]) -> None:
    final = stages[-1]
    assert final.command, "exec form, so that SIGTERM arrives"
    assert final.healthcheck, "nobody would know whether it is well"
    stop = final.last("STOPSIGNAL")
    assert stop is not None
    assert stop.text == "SIGTERM"


def test_locks_are_installed_with_hashes_and_nothing_is_compiled(stages: list[Stage]) -> None:
    for each in (line for stage in stages for line in stage.all("RUN")):
        for command in re.findall(r"install --no-cache-dir[^&]*", each.text):
            hashed = "--require-hashes" in command and "--only-binary :all:" in command
            assert hashed or "--no-deps --no-index" in command, command
        assert "apt-get" not in each.text


def test_no_tool_to_build_or_install_with_is_in_the_last_stage(stages: list[Stage]) -> None:
    if len(stages) == 1:
        return  # nothing is installed on top of vLLM's own image
    assert "pip uninstall --yes pip" in stages[-1].all("RUN")[0].text
    for each in stages[-1].all("COPY"):
        origin, names, _ = each.copied
        assert origin or names == ["router"], "the translator's program, which nothing is built of"
    assert "venv --without-pip" in stages[0].all("RUN")[0].text


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_sent_to_the_engine(name: str) -> None:
    is_own_context = name == "vllm/Dockerfile"
    sent = (
        [Path(each.name) for each in (DEPLOY / "vllm").iterdir()]
        if is_own_context
        else [Path(each) for each in sent_files(ROOT)]
    )
    for each in (copied for stage in DOCKERFILES[name] for copied in stage.all("COPY")):
        origin, names, _ = each.copied
        for source in [] if origin else names:
            assert any(path.is_relative_to(source) for path in sent), f"{source}: .dockerignore, or not there"


def test_nothing_private_is_sent_to_the_engine() -> None:
    for name in sent_files(ROOT):
        assert not re.search(r"(^|/)\.|secret.*\.json|penstock-data|__pycache__|^tests/|^deploy/", name), name


def test_the_image_holds_every_package_of_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = [name for each in DOCKERFILES["Dockerfile"][0].all("COPY") for name in each.copied[1]]
    assert set(wheel["packages"]) <= set(copied)


def test_the_image_keeps_its_data_where_it_says() -> None:
    final = DOCKERFILES["Dockerfile"][-1]
    assert final.environment["PENSTOCK_DATA_DIR"] == "/var/lib/penstock"
    assert "--owner 10001 --group 10001 --mode 0700 /var/lib/penstock" in final.all("RUN")[0].text


@pytest.mark.parametrize("path", [path for path in PLACES if path.is_file()], ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    real = {f"PENSTOCK_{name.upper()}" for name in Settings.model_fields}
    for name in re.findall(r"PENSTOCK_[A-Z_]+[A-Z]", path.read_text()):
        assert name in real | TRANSLATOR, f"{path.name}: {name} is no setting"
