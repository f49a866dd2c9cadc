"""Unique user names, released some days after they were given up (dcb.events/examples)."""

from __future__ import annotations

from datetime import datetime, timedelta

from diptych import BoundedContext, Command, CommandContext, DecisionModel, Event, EventContext, Identity, Rejected

accounts = BoundedContext("accounts")
RETENTION = timedelta(days=3)


class UserName(Identity, tag="username"): ...


class RegisterAccount(Command):
    username: UserName


class AccountRegistered(Event):
    username: UserName


class AccountClosed(Event):
    username: UserName


class UsernameChanged(Event):
    old_username: UserName
    new_username: UserName


class Claim(DecisionModel[UserName]):
    name: UserName
    held: bool = False
    released_at: datetime | None = None

    def evolve(self, event: AccountRegistered | AccountClosed | UsernameChanged, context: EventContext) -> Claim:
        match event:
            case AccountRegistered():
                return Claim(name=self.name, held=True)
            case UsernameChanged() if event.new_username == self.name:
                return Claim(name=self.name, held=True)
            case AccountClosed() | UsernameChanged():
                return Claim(name=self.name, released_at=context.recorded_at)


@accounts.command_handler
def register(command: RegisterAccount, claim: Claim, context: CommandContext) -> AccountRegistered:
    retained = claim.released_at is not None and context.now - claim.released_at <= RETENTION
    if claim.held or retained:
        raise Rejected("username-claimed", username=command.username)
    return AccountRegistered(username=command.username)
