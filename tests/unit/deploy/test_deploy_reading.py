"""Reading compose files and Dockerfiles as their engines would."""

from pathlib import Path

import pytest

from tests.deploy.compose import Malformed, Unset, Variable, interpolated, variables
from tests.deploy.dockerfile import NotUnderstood, read_dockerfile
from tests.deploy.machine import sent_files


@pytest.mark.parametrize(
    ("text", "given", "becomes"),
    [
        ("$NAME and ${NAME}", {"NAME": "x"}, "x and x"),
        ("${NAME}", {}, ""),
        ("${NAME:-else}", {"NAME": ""}, "else"),
        ("${NAME-else}", {"NAME": ""}, ""),
        ("${NAME-else}", {}, "else"),
        ("${NAME:-${OTHER:-end}}", {}, "end"),
        ("${NAME:+there}", {"NAME": "x"}, "there"),
        ("${NAME:+there}", {"NAME": ""}, ""),
        ("${NAME+there}", {"NAME": ""}, "there"),
        ("${NAME:?cure}", {"NAME": "x"}, "x"),
        ("${NAME?cure}", {"NAME": ""}, ""),
        ("$$NAME costs $$1", {"NAME": "x"}, "$NAME costs $1"),
        ("no variable", {}, "no variable"),
    ],
)
def test_a_variable_becomes_what_compose_makes_of_it(text: str, given: dict[str, str], becomes: str) -> None:
    assert interpolated({"a": [text, 1]}, given) == {"a": [becomes, 1]}


@pytest.mark.parametrize(
    ("text", "given"), [("${NAME:?cure}", {"NAME": ""}), ("${NAME:?cure}", {}), ("${NAME?cure}", {})]
)
def test_a_required_variable_that_nobody_sets_fails_with_its_cure(text: str, given: dict[str, str]) -> None:
    with pytest.raises(Unset, match="NAME is missing a value: cure"):
        interpolated([text], given)


@pytest.mark.parametrize("text", ["${NAME", "${}", "${NAME*}", "costs 5$ a month"])
def test_what_compose_would_not_take_is_not_taken(text: str) -> None:
    with pytest.raises(Malformed):
        interpolated(text, {})


def test_variables_in_defaults_are_found_as_well() -> None:
    assert list(variables({"a": "${ONE:-$TWO}"})) == [Variable("ONE", ":-", "$TWO"), Variable("TWO", "", "")]


def test_a_dockerfile_is_read_stage_by_stage(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "# What it is\nFROM one:1 AS build\nRUN make \\\n    # why\n    && make install\nFROM two:2\n"
        'ENV A=1 \\\n    B="two words"\nCOPY --from=build /opt/it ./\nENTRYPOINT ["it"]\nCMD ["first"]\nCMD ["serve"]\n'
        'HEALTHCHECK --interval=1s \\\n    CMD ["it", "well"]\n'
    )
    build, final = read_dockerfile(tmp_path / "Dockerfile")
    assert (build.name, final.base) == ("build", "two:2")
    assert " ".join(build.instructions[0].text.split()) == "make && make install"
    assert final.environment == {"A": "1", "B": "two words"}
    assert final.all("COPY")[0].copied == ("build", ["/opt/it"], "./")
    assert final.command == ["it", "serve"]
    assert final.healthcheck == ["it", "well"]


@pytest.mark.parametrize("line", ["CMD penstock serve", "HEALTHCHECK CMD curl localhost"])
def test_a_command_for_a_shell_is_no_command_for_an_image(tmp_path: Path, line: str) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM one:1\n{line}\n")
    with pytest.raises(NotUnderstood, match="exec form"):
        _ = [each.argv for each in read_dockerfile(tmp_path / "Dockerfile")[0].instructions]


def test_an_instruction_that_is_not_known_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM one:1\nADD https://example.com/it /it\n")
    with pytest.raises(NotUnderstood, match="ADD"):
        read_dockerfile(tmp_path / "Dockerfile")


def test_only_what_is_named_is_sent_to_the_engine(tmp_path: Path) -> None:
    for name in ("gateway/cli.py", "gateway/__pycache__/cli.pyc", "README.md", ".env", "data/secrets.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text("# Why\n*\n!README.md\n!gateway\n**/__pycache__\n")
    assert sent_files(tmp_path) == ["README.md", "gateway/cli.py"]
