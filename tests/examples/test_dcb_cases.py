"""The worked examples of dynamic consistency boundaries (dcb.events), each case run as a scenario."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diptych import BoundedContext, Command, Event
from diptych.messages.annotations import snake_case
from diptych.messages.tags import tag_reader
from diptych.testing import Scenario, scenario
from tests.examples.dcb import (
    course_subscriptions,
    dynamic_product_price,
    invoice_number,
    opt_in_token,
    record_duplication,
    unique_username,
)
from tests.examples.dcb.opt_in_token import (
    ConfirmSignUp,
    EmailAddress,
    OneTimePassword,
    SignUpConfirmed,
    SignUpInitiated,
)

CASES = Path(__file__).parents[3] / "shared" / "data" / "dcb_cases.json"
EXAMPLES: dict[str, tuple[Any, BoundedContext]] = {
    "course-subscriptions": (course_subscriptions, course_subscriptions.courses),
    "unique-username": (unique_username, unique_username.accounts),
    "dynamic-product-price": (dynamic_product_price, dynamic_product_price.prices),
    "opt-in-token": (opt_in_token, opt_in_token.sign_up),
    "invoice-number": (invoice_number, invoice_number.invoices),
    "prevent-record-duplication": (record_duplication, record_duplication.orders),
}
CODES = {
    "Course with id “…” already exists": "course-exists",
    "Course “…” does not exist": "course-unknown",
    "Course “…” is already fully booked": "course-full",
    "Student already subscribed to this course": "already-subscribed",
    "Student already subscribed to 5 courses": "too-many-courses",
    "Username “…” is claimed": "username-claimed",
    "invalid price for product “…”": "price-invalid",
    "No pending sign-up for this OTP / email address": "no-pending-sign-up",
    "OTP was already used": "otp-used",
    "Re-submission": "re-submission",
}
AGE_UNTOLD = {"unique-username": timedelta(days=365)}
"""How old events are of which a case says nothing. Its earlier features know no retention: there, it is over."""


def cases() -> list[Any]:
    if not CASES.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"the cases are not here: {CASES}"))]
    return [pytest.param(case, id=case["id"]) for case in json.loads(CASES.read_text())["cases"]]


def message(module: Any, name: str, data: dict[str, Any]) -> Any:
    """A message of an example from a case's JSON."""
    if name == "InvoiceCreated":  # tags come from identities, which are text
        data = {**data, "invoice": str(data["invoiceNumber"])}
    return msgspec.convert(_snake(data), getattr(module, name[0].upper() + name[1:]))


def _snake(value: Any) -> Any:
    if isinstance(value, dict):
        return {snake_case(name): _snake(held) for name, held in value.items()}
    return [_snake(held) for held in value] if isinstance(value, list) else value


def event_of(module: Any, told: dict[str, Any]) -> Event:
    """An event of a case, which has to be tagged as the case says."""
    event: Event = message(module, told["type"], told["data"])
    assert sorted(tag_reader(type(event)).read(event)) == sorted(told["tags"])
    return event


def age(example: str, told: dict[str, Any]) -> timedelta:
    metadata = told.get("metadata", {})
    if not metadata:
        return AGE_UNTOLD.get(example, timedelta(0))
    return timedelta(days=int(metadata.get("daysAgo", 0)), minutes=int(metadata.get("minutesAgo", 0)))


@pytest.mark.parametrize("case", cases())
def test_a_case_of_the_examples_ends_as_its_authors_say(case: dict[str, Any], store_url: str) -> None:
    """Given the case's events at their times, its command gives its event, or its refusal; on every store."""
    module, context = EXAMPLES[case["example"]]
    told: Scenario = scenario(context, stores=lambda: store_url)
    for given in case["given"]:
        told = told.given(event_of(module, given), ago=age(case["example"], given))
    command: Command = message(module, case["when"]["command"], case["when"]["data"])
    outcome = told.when(command)
    if "event" in case["then"]:
        outcome.then(event_of(module, case["then"]["event"]))
    else:
        error = case["then"]["error"]
        named = re.findall(r'"(.*?)"', error)
        code = CODES[re.sub(r'"(.*?)"', "“…”", error)]
        facts = {} if not named else {code_fact(code): named[0]}
        outcome.then_rejected(code, **facts)


def code_fact(code: str) -> str:
    """The fact in which a refusal names what it is about: "course" of "course-full"."""
    return {"price-invalid": "product"}.get(code, code.partition("-")[0])


@pytest.mark.parametrize(("minutes", "refused"), [(60, False), (61, True)])
def test_a_password_expires_after_an_hour(minutes: int, refused: bool) -> None:
    """Time in a decision is the command's, against the time at which the fact was recorded."""
    who, otp = EmailAddress("john@example.com"), OneTimePassword("333333")
    outcome = (
        scenario(opt_in_token.sign_up)
        .given(SignUpInitiated(email_address=who, otp=otp, name="John"), ago=timedelta(minutes=minutes))
        .when(ConfirmSignUp(email_address=who, otp=otp))
    )
    if refused:
        outcome.then_rejected("otp-expired")
    else:
        outcome.then(SignUpConfirmed(email_address=who, otp=otp, name="John"))
