"""Confirmation by a one-time password: a model scoped by address and password together (dcb.events/examples)."""

from __future__ import annotations

from datetime import datetime, timedelta

from diptych import (
    BoundedContext,
    Command,
    CommandContext,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Rejected,
    replace,
)

sign_up = BoundedContext("sign-up")
VALID_FOR = timedelta(minutes=60)


class EmailAddress(Identity, tag="email"): ...


class OneTimePassword(Identity, tag="otp"): ...


class ConfirmSignUp(Command):
    email_address: EmailAddress
    otp: OneTimePassword


class SignUpInitiated(Event):
    email_address: EmailAddress
    otp: OneTimePassword
    name: str


class SignUpConfirmed(Event):
    email_address: EmailAddress
    otp: OneTimePassword
    name: str


class SignUp(DecisionModel[EmailAddress, OneTimePassword]):
    name: str = ""
    initiated_at: datetime | None = None
    used: bool = False

    def evolve(self, event: SignUpInitiated | SignUpConfirmed, context: EventContext) -> SignUp:
        match event:
            case SignUpInitiated():
                return SignUp(name=event.name, initiated_at=context.recorded_at)
            case SignUpConfirmed():
                return replace(self, used=True)


@sign_up.command_handler
def confirm(command: ConfirmSignUp, initiated: SignUp, context: CommandContext) -> SignUpConfirmed:
    if initiated.initiated_at is None:
        raise Rejected("no-pending-sign-up")
    if initiated.used:
        raise Rejected("otp-used")
    if context.now - initiated.initiated_at > VALID_FOR:
        raise Rejected("otp-expired")
    return SignUpConfirmed(email_address=command.email_address, otp=command.otp, name=initiated.name)
