"""The life of one append, as a table. Everything that decides a transition is in this file.

::

                 tmp/     new/   what the caller may rely on
    IDLE          -        -     nothing has been touched
    RECEIVING     partial  -     may still be aborted
    COMMITTING    whole    ?     too late to abort; the outcome is awaited
    DELIVERED     -        +     survives a power cut (Durability.FULL)
    ABORTED       -        -     as if append had never been called
    UNCERTAIN     -        +     visible now, but a power cut may lose it

A pair that is not in `TRANSITIONS` is an error of the caller.
"""

from enum import Enum
from typing import Final

__all__ = ["TRANSITIONS", "Event", "IllegalEventError", "State", "event_of_abort", "next_state"]


class State(Enum):
    """Where a delivery stands."""

    IDLE = "idle"
    RECEIVING = "receiving"
    COMMITTING = "committing"
    DELIVERED = "delivered"
    ABORTED = "aborted"
    UNCERTAIN = "uncertain"

    __hash__ = object.__hash__  # Enum's own is written in Python, and the table is asked four times a message


class Event(Enum):
    """What can happen to a delivery."""

    START = "start"
    DATA = "data"
    END = "end"  # the producer has unregistered: the message is whole
    FAIL = "fail"  # an error before the message became visible; tmp/ has been emptied
    CANCEL = "cancel"  # cancelled while it could be; tmp/ has been emptied
    WITHDRAW = "withdraw"  # cancelled while still queued: group commit had not begun with it
    COMMIT = "commit"  # visible, and as durable as was asked for
    SYNC_FAIL = "sync_fail"  # visible, but its directory could not be synced

    __hash__ = object.__hash__


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.IDLE: {Event.START: State.RECEIVING, Event.FAIL: State.ABORTED, Event.CANCEL: State.ABORTED},
    State.RECEIVING: {
        Event.DATA: State.RECEIVING,
        Event.END: State.COMMITTING,
        Event.FAIL: State.ABORTED,
        Event.CANCEL: State.ABORTED,
    },
    # No CANCEL in this row: the message may be visible already.
    State.COMMITTING: {
        Event.COMMIT: State.DELIVERED,
        Event.SYNC_FAIL: State.UNCERTAIN,
        Event.FAIL: State.ABORTED,
        Event.WITHDRAW: State.ABORTED,
    },
    State.DELIVERED: {},
    State.ABORTED: {},
    State.UNCERTAIN: {},
}


class IllegalEventError(RuntimeError):
    """An append was used in a way its state does not allow (started twice, for one)."""


def event_of_abort(state: State, *, is_cancelled: bool) -> Event:
    """Return what happens to a delivery in *state* that is given up."""
    if not is_cancelled:
        return Event.FAIL
    return Event.CANCEL if state is State.RECEIVING else Event.WITHDRAW


def next_state(state: State, event: Event) -> State:
    """Return the state after *event*, or raise `IllegalEventError`."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalEventError(f"an append that is {state.value} cannot {event.value}") from None
