"""A bank whose transfers take time, and a process that sees them through: deposit, or refund after a while."""

from __future__ import annotations

from datetime import timedelta

from diptych import (
    BoundedContext,
    Command,
    CommandRejected,
    DecisionModel,
    Event,
    Identity,
    ProcessManager,
    Reaction,
    Rejected,
    Timeout,
    replace,
)

OVERDUE = timedelta(minutes=10)


class TransferId(Identity, tag="transfer"): ...


class Request(Command):
    transfer: TransferId
    to: str = "open"


class Deposit(Command):
    transfer: TransferId
    to: str


class Refund(Command):
    transfer: TransferId
    because: str


class Confirm(Command):
    transfer: TransferId


class Requested(Event):
    transfer: TransferId
    to: str


class Deposited(Event):
    transfer: TransferId


class Confirmed(Event):
    transfer: TransferId


class Refunded(Event):
    transfer: TransferId
    because: str


class DepositOverdue(Timeout):
    transfer: TransferId


class Transfer(DecisionModel[TransferId]):
    requested: bool = False
    deposits: int = 0

    def evolve(self, event: Requested | Deposited) -> Transfer:
        if isinstance(event, Requested):
            return replace(self, requested=True)
        return replace(self, deposits=self.deposits + 1)


class Transferring(ProcessManager[TransferId]):
    transfer: TransferId
    deposits: int = 0

    def react(
        self, event: Requested | Deposited | Confirmed | DepositOverdue | CommandRejected[Deposit]
    ) -> Reaction[Transferring]:
        match event:
            case Requested():
                deposit = Deposit(transfer=self.transfer, to=event.to)
                return Reaction(self, [deposit], [(DepositOverdue(transfer=self.transfer), OVERDUE)])
            case Deposited():
                return Reaction(replace(self, deposits=self.deposits + 1))
            case Confirmed():
                return Reaction(self, ended=True)
            case DepositOverdue():
                return Reaction(self, [Refund(transfer=self.transfer, because="overdue")], ended=True)
            case CommandRejected():
                return Reaction(self, [Refund(transfer=self.transfer, because=event.code)], ended=True)


def banking() -> BoundedContext:
    """The context: a deposit to "closed" is rejected, one to "broken" fails each time."""
    bank = BoundedContext("bank")
    bank.process_manager(starts=[Requested])(Transferring)

    @bank.command_handler
    def request(command: Request) -> Requested:
        return Requested(transfer=command.transfer, to=command.to)

    @bank.command_handler
    def deposit(command: Deposit, transfer: Transfer) -> Deposited:
        if command.to == "closed":
            raise Rejected("account-closed", to=command.to)
        if command.to == "broken":
            raise ZeroDivisionError("the machine is broken")
        return Deposited(transfer=command.transfer)

    @bank.command_handler
    def confirm(command: Confirm) -> Confirmed:
        return Confirmed(transfer=command.transfer)

    @bank.command_handler
    def refund(command: Refund) -> Refunded:
        return Refunded(transfer=command.transfer, because=command.because)

    return bank
