"""What commands print is there to be read and copied: nothing is cut off, however narrow the terminal."""

from gateway.cli_show import change_rows, rendered
from governance import Change
from governance.register import Action, FieldChange

KEY = {
    "id": "key_01m7z0gdvpchptzgkdath48qta",
    "app": "web",
    "user": None,
    "roles": ["platform_admin"],
    "revoked": False,
}


def test_a_row_is_one_line_where_no_terminal_reads() -> None:
    assert rendered([KEY, KEY], None).splitlines() == [
        "id                              app  roles           revoked",
        *["key_01m7z0gdvpchptzgkdath48qta  web  platform_admin  no"] * 2,
    ]


def test_a_terminal_that_is_too_narrow_gets_a_block_per_row_and_loses_nothing() -> None:
    assert rendered([KEY, {**KEY, "app": None}], 40).splitlines() == [
        "id       key_01m7z0gdvpchptzgkdath48qta",
        "app      web",
        "roles    platform_admin",
        "revoked  no",
        "",
        "id       key_01m7z0gdvpchptzgkdath48qta",
        "roles    platform_admin",
        "revoked  no",
    ]


def test_the_table_is_taken_as_long_as_it_fits() -> None:
    assert len(rendered([KEY], 60).splitlines()) == 2
    assert len(rendered([KEY], 59).splitlines()) == 4


def test_lists_and_objects_are_told_in_a_line_and_wide_letters_take_two_columns() -> None:
    rows = [{"name": "日本", "is": {"tokens": 5, "none": None}}, {"name": "x", "is": ["a", "b\nc"]}]
    assert rendered(rows, None).splitlines() == ["name  is", "日本  tokens: 5", "x     a, b c"]


def test_rows_with_nothing_in_them_are_no_accident() -> None:
    assert rendered([{"a": None, "b": []}], 80) == "\n"


def test_of_what_changes_the_old_and_the_new_are_told() -> None:
    field = FieldChange("limit_usd", "5", "7")
    added = FieldChange("detectors", None, ["card"])
    changes = [
        Change("budget", "day", Action.UPDATE, 2, (field, added)),
        Change("budget", "month", Action.CREATE, 1, (field,)),
        Change("budget", "year", Action.UNCHANGED, 1),
    ]
    assert [(row["name"], row["fields"]) for row in change_rows(changes)] == [
        ("day", ["limit_usd: 5 -> 7", "detectors: none -> card"]),
        ("month", []),
    ]
