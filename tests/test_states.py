import pytest

from maildir_async.format.states import TRANSITIONS, Event, IllegalEventError, State, next_state

# Written from the promises, not from the code: what may happen to a delivery that stands so, and where it stands then.
TABLE = """
             start      data       end         fail     cancel   withdraw  commit     sync_fail
idle         receiving  -          -           aborted  aborted  -         -          -
receiving    -          receiving  committing  aborted  aborted  -         -          -
committing   -          -          -           aborted  -        aborted   delivered  uncertain
delivered    -          -          -           -        -        -         -          -
aborted      -          -          -           -        -        -         -          -
uncertain    -          -          -           -        -        -         -          -
"""


def test_every_cell() -> None:
    """Every pair of state and event leads where the table says, or is an IllegalEventError that names both."""
    head, *rows = [line.split() for line in TABLE.strip().splitlines()]
    expected = {(row[0], event): cell for row in rows for event, cell in zip(head, row[1:], strict=True)}
    visited = 0
    for state in State:
        for event in Event:
            cell = expected[state.value, event.value]
            if cell == "-":
                with pytest.raises(IllegalEventError, match=f"{state.value}.*{event.value}"):
                    next_state(state, event)
            else:
                assert next_state(state, event) is State(cell)
            visited += 1
    assert visited == len(expected)


def test_states_are_those_of_the_design() -> None:
    """The states have the six names that users see in ``task.state``, and each has its row."""
    assert [state.name for state in State] == [
        *("IDLE", "RECEIVING", "COMMITTING", "DELIVERED", "ABORTED", "UNCERTAIN"),
    ]
    assert list(TRANSITIONS) == list(State)


def test_an_illegal_event_is_an_error_of_the_caller() -> None:
    """IllegalEventError is a RuntimeError, since no retry will help, and hides the KeyError behind it."""
    with pytest.raises(RuntimeError) as caught:
        next_state(State.DELIVERED, Event.START)
    assert caught.value.__suppress_context__
