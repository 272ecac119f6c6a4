"""What is kept of a conversation that grew too long."""

from __future__ import annotations

from runtimes.reasoning.conversation import KEPT_STEPS, Conversation
from runtimes.reasoning.events import Event, Summed
from runtimes.reasoning.rules import ModelRules

STUBS = "Tools that have just come:\n```python\ndef city__look(city: str) -> str: ...\n```"


def conversation(*said: tuple[str, str]) -> tuple[Conversation, list[Event]]:
    events: list[Event] = []
    talk = Conversation(None, ModelRules(name="m"), None, events.append)
    talk.begin([{"role": "system", "content": "rules"}, {"role": "user", "content": "the task"}])
    for role, content in said:
        talk.say(role, content)
    return talk, events


def steps(first: int, last: int) -> list[tuple[str, str]]:
    return [
        one for number in range(first, last) for one in (("assistant", f"code {number}"), ("user", f"came {number}\nx"))
    ]


def test_each_older_step_becomes_a_line_with_what_came_of_it() -> None:
    talk, events = conversation(*steps(0, 4))
    assert talk.sum_up()
    summary = talk.messages[1]["content"].splitlines()
    assert summary[0] == "the task"
    assert summary[3:] == ["- 'code 0': came 0", "- 'code 1': came 1"]
    assert [(one["role"], one["content"]) for one in talk.messages[2:]] == steps(2, 4)
    assert events == [Summed(steps=4 - KEPT_STEPS)]
    assert not talk.sum_up(), "nothing is left to sum up"


def test_tools_that_came_between_two_steps_stay_known_and_shift_nothing() -> None:
    talk, _ = conversation(*steps(0, 1), ("user", STUBS), *steps(1, 4))
    assert talk.sum_up()
    summary = talk.messages[1]["content"]
    assert "- 'code 0': came 0\n" in summary
    assert "- 'code 1': came 1" in summary
    assert STUBS in summary
    assert [(one["role"], one["content"]) for one in talk.messages[2:]] == steps(2, 4)


def test_tools_that_came_before_the_first_step_stay_where_they_are() -> None:
    talk, _ = conversation(("user", STUBS), *steps(0, 3))
    assert talk.sum_up()
    assert talk.messages[2]["content"] == STUBS
    assert [(one["role"], one["content"]) for one in talk.messages[3:]] == steps(1, 3)


def test_the_last_steps_are_never_summed_up() -> None:
    talk, events = conversation(*steps(0, KEPT_STEPS))
    assert not talk.sum_up()
    assert not events
