"""The commands that look into a store: status, events, parked, rebuild."""

from __future__ import annotations

import getpass
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli_project import STORE, Project, project_in

KEY = '["python"]'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose settings name its context and its store."""
    with project_in(tmp_path, monkeypatch) as made:
        made.settings(f'app = ["{made.context}"]\nstore = "{STORE}"\n')
        yield made


@pytest.fixture
def blocked(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same, with a key that waits behind its second event, at position 3."""
    project.enrol("python", "ruby")
    monkeypatch.setenv("UNFOLDABLE", "python")
    project.enrol("python", "ruby", "python")
    monkeypatch.delenv("UNFOLDABLE")
    return project


# ── status ───────────────────────────────────────────────────────────────────


def test_status_shows_the_head_and_each_projection(project: Project) -> None:
    """As JSON, the fields of `Status`; as text, the same figures."""
    project.enrol("python", "ruby")
    found = json.loads(project.run("status", "--json").out)
    (seats,) = found["projections"]
    assert found["head"] == 2
    assert (seats["name"], seats["checkpoint"], seats["lag_events"], seats["blocked"]) == ("school.Seats", 2, 0, 0)
    assert "not the loss of the machine" in found["commits_survive"]
    code, out, err = project.run("status")
    assert (code, err) == (0, "")
    assert found["history_id"] in out
    assert ["school.Seats", "live", "2", "0", "0.0", "s", "0"] in [line.split() for line in out.splitlines()]


def test_status_shows_how_far_a_projection_is_behind(project: Project) -> None:
    """It folds nothing itself: asking twice gives the same lag."""
    project.enrol("python")
    for _ in range(2):
        read_store = "sqlite:empty.read.db"
        (seats,) = json.loads(project.run("status", "--read-store", read_store, "--json").out)["projections"]
        assert (seats["checkpoint"], seats["lag_events"]) == (0, 1)
        assert seats["lag_s"] > 0


@pytest.mark.parametrize("command", [("status",), ("parked", "list"), ("rebuild", "Seats")])
def test_looking_has_no_effects_outside(project: Project, command: tuple[str, ...]) -> None:
    """Subscribers belong to the process that runs the application."""
    project.enrol("python")
    informed = project.folder / "informed.txt"
    informed.unlink(missing_ok=True)
    assert project.run(*command, "--read-store", "sqlite:empty.read.db").code == 0
    assert not informed.exists()


def test_status_without_the_code_shows_the_history(project: Project) -> None:
    """Head and history id are the store's own."""
    project.enrol("python")
    project.settings("")
    found = json.loads(project.run("status", "--store", STORE, "--json").out)
    assert (found["head"], found["projections"]) == (1, [])
    assert "head     1" in project.run("status", "--store", STORE).out


def test_status_claims_no_build_that_nobody_does(project: Project) -> None:
    """Read models of changed code are not live, and looking at them makes no build: the old rows alone are kept."""
    project.enrol("python", "ruby")
    code, out, err = project.run("status", project.changed())
    assert (code, err) == (0, "")
    assert "not live: checkpoint 0 of 2; rows of other code answer" in out
    assert "being built" not in out
    assert "diptych rebuild" in out
    (seats,) = json.loads(project.run("status", project.changed(), "--json").out)["projections"]
    assert (seats["live"], seats["other_code"], seats["checkpoint"], seats["lag_events"]) == (False, True, 0, 2)
    with closing(sqlite3.connect(project.folder / "school.read.db")) as read_store:
        made = "SELECT COUNT(*) FROM diptych_generations WHERE name = 'school.Seats'"
        assert read_store.execute(made).fetchone() == (1,)


# ── events ───────────────────────────────────────────────────────────────────


def test_events_are_json_lines_in_order(project: Project) -> None:
    """Each with what the store knows, its data and metadata as JSON."""
    project.enrol("python", "ruby")
    lines = [json.loads(line) for line in project.run("events", "--json").out.splitlines()]
    assert [line["position"] for line in lines] == [1, 2]
    first = lines[0]
    assert (first["type"], first["version"], first["tags"]) == ("school.Enrolled", 1, ["course:python"])
    assert first["data"] == {"course": "python"}
    assert len(first["metadata"]["command_id"]) == 36
    assert set(first) == {"position", "event_id", "type", "version", "recorded_at", "tags", "data", "metadata"}


def test_events_are_lines_for_people(project: Project) -> None:
    """Without a terminal nothing is cut, and there are no control codes."""
    project.enrol("python" * 80)
    code, out, err = project.run("events")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert out.rstrip().endswith(f'school.Enrolled  course:{"python" * 80}  {{"course":"{"python" * 80}"}}')
    assert "\x1b" not in out


def test_events_cannot_write_to_the_terminal_what_it_would_obey(project: Project) -> None:
    """An escape sequence in a stored tag is shown, not sent."""
    project.enrol("\x1b[2Jpython")
    out = project.run("events").out
    assert "course:\\x1b[2Jpython" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        ((), [1, 2, 3, 4, 5]),
        (("--after", "3"), [4, 5]),
        (("--after", "99"), []),
        (("--limit", "2"), [1, 2]),
        (("--limit", "5"), [1, 2, 3, 4, 5]),
        (("--tag", "course:python"), [1, 3, 5]),
        (("--tag", "course:python", "--tag", "course:ruby"), []),
        (("--type", "Audited"), [5]),
        (("--type", "school.Audited", "--type", "Enrolled"), [1, 2, 3, 4, 5]),
        (("--type", "Enrolled", "--tag", "course:python", "--after", "1", "--limit", "1"), [3]),
    ],
)
def test_events_are_chosen(project: Project, options: tuple[str, ...], positions: list[int]) -> None:
    """By place, tags (all of them), types (any of them) and number."""
    project.enrol("python", "ruby", "python", "ruby")
    project.audit("python")
    lines = project.run("events", "--json", *options).out.splitlines()
    assert [json.loads(line)["position"] for line in lines] == positions


def test_a_type_that_the_store_does_not_hold_is_told_with_close_names(project: Project) -> None:
    """A misspelt name would otherwise look like an empty history."""
    project.enrol("python")
    code, out, err = project.run("events", "--type", "Enroled")
    assert (code, out) == (1, "")
    assert "no event type in this store is named 'Enroled'; did you mean school.Enrolled?" in err


def test_a_tag_name_that_no_stored_type_has_is_a_warning_with_close_names(project: Project) -> None:
    """It runs all the same: a tag of that name may be to come."""
    project.enrol("python")
    code, out, err = project.run("events", "--tag", "cuorse:python")
    assert (code, out) == (0, "")
    assert "warning no event type in this store is tagged 'cuorse'; did you mean course?" in err
    code, out, err = project.run("events", "--tag", "foo:1")
    assert (code, out) == (0, "")
    assert "warning no event type in this store is tagged 'foo'; there are course" in err
    assert project.run("events", "--tag", "course:nothing").err == ""


# ── parked ───────────────────────────────────────────────────────────────────


def test_nothing_parked_is_said(project: Project) -> None:
    """In words for people, in no lines for machines."""
    project.enrol("python")
    assert project.run("parked", "list").out == "Nothing is parked.\n"
    assert project.run("parked", "list", "--json") == (0, "", "")


WHY = ("--reason", "the library is mended")


def the_parked(project: Project) -> str:
    """The id of the one item that is parked."""
    (line,) = project.run("parked", "list", "--json").out.splitlines()
    found: str = json.loads(line)["id"]
    return found


def test_parked_keys_are_listed_with_the_reason(blocked: Project) -> None:
    """And counted by status; the other keys have gone on."""
    (line,) = blocked.run("parked", "list", "--json").out.splitlines()
    found = json.loads(line)
    assert (found["kind"], found["type"]) == ("event", "school.Enrolled")
    assert (found["name"], found["key"], found["position"]) == ("school.Seats", KEY, 3)
    assert "ValueError: no such room" in found["error"]
    out = blocked.run("parked", "list").out
    assert all(text in out for text in (found["id"], "school.Seats", KEY, "no such room"))
    (seats,) = json.loads(blocked.run("status", "--json").out)["projections"]
    assert (seats["checkpoint"], seats["blocked"]) == (5, 1)
    assert "see diptych parked list" in blocked.run("status").out
    assert blocked.taken("ruby") == 2
    assert blocked.run("parked", "list", "--kind", "step").out == "Nothing is parked.\n"


def test_a_page_tells_where_the_next_one_begins(blocked: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that it is in nobody's way."""
    monkeypatch.setenv("UNFOLDABLE", "ruby")
    blocked.enrol("ruby")
    code, out, err = blocked.run("parked", "list", "--limit", "1", "--json")
    assert (code, len(out.splitlines())) == (0, 1)
    told, _, cursor = err.strip().rpartition(" ")
    assert told == "there is more: --after"
    code, rest, err = blocked.run("parked", "list", "--after", cursor, "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["key"] for line in (out + rest).splitlines()] == [KEY, '["ruby"]']


def test_a_parked_item_is_shown_with_its_fields_and_stack_trace(blocked: Project) -> None:
    """As text and as JSON."""
    item = the_parked(blocked)
    found = json.loads(blocked.run("parked", "show", item, "--json").out)
    assert found["data"] == {"course": "python"}
    assert found["trace"].startswith("Traceback")
    assert found["trace"].endswith("ValueError: no such room\n")
    out = blocked.run("parked", "show", item).out
    assert all(text in out for text in (item, '{"course":"python"}', "Traceback", "raise ValueError"))


def test_a_retry_folds_what_waits(blocked: Project) -> None:
    """Once the projection can fold it."""
    item = the_parked(blocked)
    code, out, err = blocked.run("parked", "retry", item, *WHY)
    assert (code, err) == (0, "")
    assert out == f"{item} is tried again, and its key goes on: every event is folded.\n"
    assert blocked.taken("python") == 3
    assert blocked.run("parked", "list", "--json").out == ""


def test_a_retry_that_fails_again_says_so(blocked: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is 1, and the key still waits, under the same id; who tried is shown."""
    monkeypatch.setenv("UNFOLDABLE", "python")
    item = the_parked(blocked)
    code, out, err = blocked.run("parked", "retry", item, *WHY)
    assert (code, out) == (1, "")
    assert f"school.Seats {KEY} is still blocked, at position 3 ({item}): ValueError: no such room" in err
    assert the_parked(blocked) == item
    (retried,) = json.loads(blocked.run("parked", "show", item, "--json").out)["retries"]
    assert (retried["actor"], retried["reason"]) == (getpass.getuser(), WHY[1])


def test_a_discard_leaves_one_event_out_for_good(blocked: Project) -> None:
    """A rebuild leaves it out as well; who did it and why is listed."""
    item = the_parked(blocked)
    assert blocked.run("parked", "discarded").out == "Nothing was discarded.\n"
    code, out, _ = blocked.run("parked", "discard", item, "--yes", "--reason", "sold by hand")
    assert (code, out) == (0, f"{item} is discarded, and its key goes on: it is left out.\n")
    assert blocked.taken("python") == 2
    assert blocked.run("rebuild", "Seats").code == 0
    assert blocked.taken("python") == 2
    (line,) = blocked.run("parked", "discarded", "--json").out.splitlines()
    left_out = json.loads(line)
    assert (left_out["name"], left_out["key"], left_out["position"]) == ("school.Seats", KEY, 3)
    assert (left_out["by"]["actor"], left_out["by"]["reason"]) == (getpass.getuser(), "sold by hand")
    assert "sold by hand" in blocked.run("parked", "discarded").out


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_a_discard_asks_on_a_terminal(
    blocked: Project, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    """Anything but yes changes nothing."""
    item = the_parked(blocked)
    ours, users = os.openpty()
    with os.fdopen(ours, "w") as keyboard, os.fdopen(users) as terminal:
        keyboard.write(f"{answer}\n")
        keyboard.flush()
        monkeypatch.setattr("sys.stdin", terminal)
        ended = blocked.run("parked", "discard", item, *WHY)
        assert ended.code == code
        assert "no such room" in ended.out
        assert f"Leave school.Enrolled out of school.Seats {KEY} for good? [y/N]" in ended.out
    assert len(blocked.run("parked", "list", "--json").out.splitlines()) == code


def test_what_is_not_parked_cannot_be_retried(blocked: Project) -> None:
    """The error says where to look."""
    code, _, err = blocked.run("parked", "retry", "event-3-00000000", *WHY)
    assert code == 1
    assert "nothing is parked as 'event-3-00000000'; see `diptych parked list`" in err


def test_an_event_is_not_edited(blocked: Project) -> None:
    """The error says what to do instead."""
    code, _, err = blocked.run("parked", "retry", the_parked(blocked), *WHY, "--fields", '{"course": "perl"}')
    assert code == 1
    assert "an event is a fact, and never edited: mend the code, or add an upcaster" in err


def test_a_mended_projection_is_built_anew_rather_than_retried(blocked: Project) -> None:
    """What was parked belongs to rows that the changed fold replaces as a whole."""
    source = blocked.folder / f"{blocked.module}.py"
    (blocked.folder / "mended.py").write_text(source.read_text().replace("row.taken + 1", "1 + row.taken"))
    code, out, err = blocked.run("parked", "retry", the_parked(blocked), "mended:school", *WHY)
    assert (code, out) == (1, "")
    assert "run the application, or diptych rebuild school.Seats" in err


# ── rebuild ──────────────────────────────────────────────────────────────────


def test_a_rebuild_folds_the_history_anew(project: Project) -> None:
    """What was there before is replaced, up to the head."""
    project.enrol("python", "ruby", "python")
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%\"taken\"%'"
    with closing(sqlite3.connect(project.folder / "school.read.db")) as connection:
        (name,) = connection.execute(tables).fetchone()
        connection.execute(f'UPDATE "{name}" SET taken = 99')
        connection.commit()
    assert project.taken("python") == 99
    code, out, err = project.run("rebuild", "Seats")
    assert (code, err) == (0, "")
    assert out.startswith("school.Seats is rebuilt up to position 3, in ")
    assert project.taken("python") == 2


def test_a_rebuild_with_changed_code_says_whom_it_takes_the_rows_from(project: Project) -> None:
    """For how long a server of the old code has its rows afterwards is said before the switch, and at the end."""
    project.enrol("python", "ruby", "python")
    code, out, err = project.run("rebuild", "Seats", project.changed())
    assert code == 0
    assert "warning the live rows of school.Seats are of other code than this" in err
    assert "answers from them for 3600 s more" in err
    assert out.startswith("school.Seats is rebuilt up to position 3, in ")
    assert "Restart with this code what still runs the other" in out
    again = project.run("rebuild", "Seats", project.changed())
    assert (again.code, again.err) == (0, "")
    assert "other" not in again.out


def test_a_rebuild_of_nothing_known_names_what_there_is(project: Project) -> None:
    """With close names."""
    project.enrol("python")
    code, out, err = project.run("rebuild", "Setas")
    assert (code, out) == (1, "")
    assert "no read model is named 'Setas'; did you mean school.Seats?" in err


# ── stores ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [("status",), ("events",), ("parked", "list"), ("rebuild", "Seats")])
@pytest.mark.parametrize(
    ("store", "told"),
    [
        ("memory:", "One in memory ends with its process"),
        ("redis:school", "no store for the URL 'redis:school': it must begin with one of memory:, sqlite:"),
        ("sqlite:", "'sqlite:' names no file"),
        ("sqlite:shcool.db", "there is no store at shcool.db; did you mean school.db?"),
        ("sqlite:nowhere/school.db", "there is no folder nowhere"),
        ("sqlite:diptych.toml", "it is no SQLite database"),
    ],
)
def test_a_store_that_is_not_there_is_not_made(
    project: Project, command: tuple[str, ...], store: str, told: str
) -> None:
    """A misspelt path is an error, never a new and empty store."""
    project.enrol("python")
    before = sorted(project.folder.iterdir())
    code, out, err = project.run(*command, "--store", store)
    assert (code, out) == (1, "")
    assert told in err
    assert "Traceback" not in err
    after = [path for path in sorted(project.folder.iterdir()) if not path.name.startswith("diptych.toml")]
    assert after == [path for path in before if not path.name.startswith("diptych.toml")]


def test_a_new_store_in_a_folder_that_is_not_there_is_told_by_its_own_path(project: Project) -> None:
    """Not by that of a file beside it, which nobody has asked for; where the folder is there, the system's reason."""
    code, out, err = project.run("run", "--store", "sqlite:nowhere/school.db")
    assert (code, out) == (1, "")
    assert "error: the store nowhere/school.db cannot be opened: there is no folder nowhere; make it, or check" in err
    assert "-queue" not in err
    (project.folder / "taken.db-queue").mkdir()
    code, out, err = project.run("run", "--store", "sqlite:taken.db")
    assert (code, out) == (1, "")
    assert "the store taken.db cannot be opened: taken.db-queue beside it: Is a directory" in err


def test_without_a_store_it_says_where_one_can_be_named(project: Project) -> None:
    """Flag, environment or file."""
    project.settings("")
    code, _, err = project.run("events")
    assert code == 1
    assert "--store sqlite:<path>, DIPTYCH_STORE, or store in diptych.toml" in err


def test_an_unexpected_error_is_short_and_says_where_to_see_more(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --verbose the traceback is there."""
    project.enrol("python")
    source = project.folder / f"{project.module}.py"
    (project.folder / "later.py").write_text("from late import x\n")
    (project.folder / "late.py").write_text("1 / 0\n")
    source.with_name("lazy.py").write_text(
        "from diptych import BoundedContext\nschool = BoundedContext('school', modules=['later'])\n"
    )
    code, out, err = project.run("status", "lazy:school")
    assert (code, out) == (1, "")
    assert "unexpected ZeroDivisionError: division by zero; run it again with --verbose" in err
    assert "Traceback" not in err
    again = project.run("status", "lazy:school", "--verbose")
    assert "late.py" in again.err
    assert "Traceback" in again.err
    as_json = project.run("status", "lazy:school", "--log-format", "json").err
    assert json.loads(as_json)["message"].startswith("unexpected ZeroDivisionError")
