"""Who exists, and what a declaration says when it names somebody who does not."""

from datetime import UTC, date, datetime

import pytest
from pydantic import ValidationError

from governance import KINDS, Directory
from kernel import DataClass, Document, InvalidDeclaration, Role

AT = datetime(2026, 11, 1, tzinfo=UTC)


def document(kind, name, **body):
    return Document(kind, name, 1, body, "test", AT)


def test_directory_holds_what_was_declared_and_ignores_kinds_of_others():
    directory = Directory.of(
        [
            document("department", "sales", title="Sales"),
            document("use_case", "chat", purpose="talk", risk_class="limited"),
            document(
                "app",
                "crm",
                department="sales",
                use_cases=["chat", "chat"],
                data_class="confidential",
                observe={"limits": "2026-12-01"},
            ),
            document("user", "ada", department="sales", roles=["platform_admin"]),
            document("model", "m", anything=True),
        ]
    )
    app = directory.apps["crm"]
    assert (app.department, app.data_class, app.use_cases) == ("sales", DataClass.CONFIDENTIAL, ("chat",))
    assert app.limits_observed_until == date(2026, 12, 1)
    assert directory.users["ada"].roles == {Role.PLATFORM_ADMIN}
    assert directory.use_cases["chat"].risk_class == "limited"
    assert directory.departments["sales"].title == "Sales"


def test_every_dangling_reference_is_named_with_its_field_and_cure():
    with pytest.raises(InvalidDeclaration) as fault:
        Directory.of(
            [
                document("app", "crm", department="sales", use_cases=["chat"]),
                document("user", "ada", department="sales"),
                document("policy", "p", models=["m"], departments=["ops", "*"], use_cases=["*"], data_class="public"),
                document(
                    "grant", "g", app="crm", model="m", use_case="draft", until="2027-01-01T00:00:00Z", reason="r"
                ),
            ]
        )
    lines = fault.value.message.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "app 'crm': department names department 'sales'",
        "app 'crm': use_cases names use_case 'chat'",
        "user 'ada': department names department 'sales'",
        "policy 'p': departments names department 'ops'",
        "grant 'g': use_case names use_case 'draft'",
    ]
    assert all("declare it" in line for line in lines)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("app", {"department": "-x", "use_cases": ["chat"]}),
        ("app", {"department": "x\n", "use_cases": ["chat"]}),
        ("app", {"department": "x", "use_cases": []}),
        ("app", {"department": "x", "use_cases": ["chat"], "requests_per_minute": 0}),
        ("policy", {"models": ["a*"], "departments": ["*"], "use_cases": ["*"], "data_class": "public"}),
        ("policy", {"models": ["*"], "departments": ["*"], "use_cases": ["*"], "data_class": "secret"}),
        ("grant", {"app": "a", "model": "m", "use_case": "u", "until": "2027-01-01T00:00:00", "reason": "r"}),
        ("department", {"tittle": "typo"}),
    ],
)
def test_kind_refuses_what_it_cannot_mean(kind, body):
    with pytest.raises(ValidationError):
        KINDS[kind].model_validate(body)
