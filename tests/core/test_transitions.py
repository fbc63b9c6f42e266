# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/transitions.py`: three tables, complete and without dead ends."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.errors import IllegalEvent
from dynamo.sglang_mm_resume.core.transitions import (
    RECEIVING,
    SENDING,
    SHAKING,
    Receiving,
    ReceivingEvent,
    Sending,
    SendingEvent,
    Shaking,
    ShakingEvent,
    step,
)

Table = Mapping[tuple[Any, Any], Any]

#: table, its states, its events, where a transfer begins, where it ends
TABLES: list[Any] = [
    pytest.param(
        RECEIVING, Receiving, ReceivingEvent, Receiving.WAITING, Receiving.CLOSED, id="receiving"
    ),
    pytest.param(SENDING, Sending, SendingEvent, Sending.ENCODING, Sending.CLOSED, id="sending"),
    pytest.param(SHAKING, Shaking, ShakingEvent, Shaking.RESERVING, Shaking.DONE, id="shaking"),
]
every_table = pytest.mark.parametrize(("table", "states", "events", "first", "last"), TABLES)


def reachable(table: Table, start: Enum) -> set[Enum]:
    found, edge = {start}, [start]
    while edge:
        state = edge.pop()
        following = {after for (before, _), after in table.items() if before is state} - found
        found |= following
        edge += following
    return found


@every_table
def test_every_state_is_reachable(
    table: Table, states: type[Enum], events: type[Enum], first: Enum, last: Enum
) -> None:
    assert reachable(table, first) == set(states)


@every_table
def test_every_event_has_a_row(
    table: Table, states: type[Enum], events: type[Enum], first: Enum, last: Enum
) -> None:
    assert {event for _, event in table} == set(events)


@every_table
def test_every_state_has_a_way_to_the_end(
    table: Table, states: type[Enum], events: type[Enum], first: Enum, last: Enum
) -> None:
    for state in states:
        assert last in reachable(table, state), f"{state} is a dead end"


@every_table
def test_the_last_state_absorbs(
    table: Table, states: type[Enum], events: type[Enum], first: Enum, last: Enum
) -> None:
    for event in events:
        with pytest.raises(IllegalEvent):
            step(table, last, event)


@every_table
def test_a_missing_row_names_event_and_state_and_changes_nothing(
    table: Table, states: type[Enum], events: type[Enum], first: Enum, last: Enum
) -> None:
    before = dict(table)
    missing = [(s, e) for s in states for e in events if (s, e) not in table]
    assert missing
    for state, event in missing:
        with pytest.raises(IllegalEvent, match=f"{event.name} while {state.name}"):
            step(table, state, event)
    assert dict(table) == before


def test_no_way_leads_from_quarantine_but_settling() -> None:
    """R6: what a writer may still write stays away until the writer is settled."""
    rows = {
        event: after
        for (state, event), after in RECEIVING.items()
        if state is Receiving.QUARANTINED
    }
    assert rows == {ReceivingEvent.SETTLE: Receiving.CLOSED}


def test_blocks_whose_writer_goes_on_when_the_asker_is_gone_are_quarantined() -> None:
    """R6: only a resume waits while its writer fills what it was granted before."""
    rows = {
        state: after
        for (state, event), after in RECEIVING.items()
        if event is ReceivingEvent.ASKER_GONE
    }
    assert rows == {
        Receiving.WAITING: Receiving.CLOSED,
        Receiving.GRANTED: Receiving.CLOSED,
        Receiving.RESUMING: Receiving.QUARANTINED,
    }


def test_no_writer_uses_a_grant_before_its_asker_has_it() -> None:
    ways = {
        (before, event)
        for (before, event), after in RECEIVING.items()
        if after is Receiving.RECEIVING and event is not ReceivingEvent.GRANT
    }
    assert ways == {(Receiving.GRANTED, ReceivingEvent.ANSWER)}
    assert RECEIVING[Receiving.WAITING, ReceivingEvent.GRANT] is Receiving.GRANTED


@pytest.mark.parametrize("state", [Receiving.GRANTED, Receiving.RECEIVING, Receiving.RESUMING])
def test_states_that_hold_blocks_can_be_quarantined(state: Receiving) -> None:
    assert RECEIVING[state, ReceivingEvent.QUARANTINE] is Receiving.QUARANTINED


OVER = (Receiving.QUARANTINED, Receiving.CLOSED)


@pytest.mark.parametrize("state", [state for state in Receiving if state not in OVER])
def test_every_live_transfer_can_be_given_up(state: Receiving) -> None:
    assert RECEIVING[state, ReceivingEvent.GIVE_UP] is Receiving.CLOSED
