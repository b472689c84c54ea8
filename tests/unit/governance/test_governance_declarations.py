"""The declarative file: what it may hold, and where it says the fault is."""

import pytest

from governance import Declaration, TooLarge, parse, render
from governance.declarations import plural
from kernel import InvalidDeclaration

KINDS = ("department", "app", "policy", "alias", "use_case")


def test_sections_are_plurals():
    assert [plural(kind) for kind in KINDS] == ["departments", "apps", "policies", "aliases", "use_cases"]


def test_yaml_and_json_give_the_same_declarations():
    wanted = [Declaration("department", "sales", {"title": "Sales"}), Declaration("app", "crm", {"n": 1.5})]
    assert parse("departments:\n- {name: sales, title: Sales}\napps:\n  - name: crm\n    n: 1.5\n", KINDS) == wanted
    text = '{"departments": [{"name": "sales", "title": "Sales"}],\n\t"apps": [{"name": "crm", "n": 1.5}]}'
    assert parse(text, KINDS) == wanted
    assert parse("{departments: [{name: sales, title: Sales}], apps: [{name: crm, n: 1.5}]}", KINDS) == wanted


def test_what_is_rendered_is_read_back_the_same():
    shared = ["a", "b"]
    wanted = [
        Declaration("app", "crm", {"x": shared, "y": shared, "until": "2026-12-01", "title": "Größe: 1", "on": "yes"}),
        Declaration("policy", "p", {}),
    ]
    assert parse(render(wanted), KINDS) == wanted
    assert parse("", KINDS) == []


def test_dates_stay_text():
    assert parse("apps: [{name: a, until: 2026-12-01T00:00:00Z}]", KINDS)[0].body == {"until": "2026-12-01T00:00:00Z"}


def test_every_fault_names_section_and_index():
    with pytest.raises(InvalidDeclaration) as fault:
        parse("apps: [{name: a}, {title: x}, 7]\nteams: []\npolicies: {p: {}}", KINDS)
    lines = fault.value.message.splitlines()
    assert lines[0].startswith("apps[1].name is missing")
    assert lines[1].startswith("apps[2] is a mapping")
    assert "'teams' is unknown" in lines[2]
    assert "departments" in lines[2]
    assert lines[3].startswith("section 'policies' is a list")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("apps: [{name: a, name: b}]", "twice"),
        ("apps: []\napps: []", "line 2"),
        ('{"apps": [], "apps": []}', "twice"),
        ("a: &x [1]\nb: *x", "anchors"),
        ("apps: [{name: a, x: .nan}]", "finite"),
        ('{"apps": [{"name": "a", "x": NaN}]}', "finite"),
        ('{"apps": [{"name": "a", "x": 1e999}]}', "finite"),
        ("apps: [{name: a, x: 99999999999999999999}]", "64 bits"),
        ("apps: [{name: a, 7: b}]", "quote it"),
        ("apps: [{name: a, ? [1] : b}]", "a key is text"),
        ("apps: [{name: a, x: !!binary aGk=}]", "bytes"),
        ("apps: [{name: a, x: !!python/object/apply:os.system [ls]}]", "constructor"),
        ('{"apps": [{"name": "\\ud800"}]}', "cannot be read"),
        ("[" * 5_000, "nested too deeply"),
        ('{"a":' + "[" * 50_000, "nested too deeply"),
        ("apps: [", "not valid YAML at line 1"),
        ("just text", "mapping of sections"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, words):
    with pytest.raises(InvalidDeclaration, match=words):
        parse(text, KINDS)


def test_size_is_bounded():
    with pytest.raises(TooLarge):
        parse("#" + "x" * 1_048_576, KINDS)
