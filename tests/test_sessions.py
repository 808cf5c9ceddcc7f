"""A server's session without a thread: what it takes in, what comes next, what it answers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mobillm_kit.channel.messages import (
    Ack,
    Bye,
    Checkpoint,
    Error,
    Fetch,
    Gradient,
    Hello,
    Need,
    Ping,
    Pong,
    WireError,
)
from mobillm_kit.server.session import OTHER_JOBS, Session
from tests.faults.flood import batch, plan

NOW = 10.0
BATCH_BYTES = sum(map(len, batch(0)[1]))


def hello(**changes) -> Hello:
    return replace(Hello(session="f" * 32, name="test", code="", position=0, plan=plan(), frames=[]), **changes)


def session(credit: int = 2, budget_bytes: int = 2**40) -> Session:
    return Session(plan(), credit=credit, budget_bytes=budget_bytes)


def begun(credit: int = 2, resume: int = 0, **options) -> Session:
    made = session(credit, **options)
    greet(made, resume)
    made.replies()
    return made


def greet(made: Session, resume: int) -> None:
    first = hello()
    made.greet(first, NOW, again=False)
    job = made.next_job(waiting=False)
    assert job is not None
    assert job.message is first
    made.resume(first, resume)
    made.done(job, [], resume)


def give(made: Session, sequence: int) -> None:
    message, payloads = batch(sequence)
    made.receive(message, [memoryview(payload) for payload in payloads], NOW)


def ack(sequence: int) -> Ack:
    return Ack(sequence=sequence, loss=0.5, cached=False, queue_s=0.0, decode_s=0.0, train_s=0.0)


def train_one(made: Session) -> int:
    job = made.next_job(waiting=False)
    assert job is not None
    sequence = job.message.sequence
    made.done(job, [(ack(sequence), [])], sequence + 1)
    return sequence


def said(made: Session) -> list:
    return [message for message, _ in made.replies()]


def test_nothing_is_taken_in_between_a_hello_and_its_welcome():
    made = session()
    made.greet(hello(), NOW, again=False)
    give(made, 0)
    assert isinstance(made.next_job(waiting=False).message, Hello)
    assert made.next_job(waiting=False) is None


def test_batches_are_trained_in_their_order_and_acknowledged():
    made = begun()
    give(made, 0)
    give(made, 1)
    assert [train_one(made), train_one(made)] == [0, 1]
    assert [message.sequence for message in said(made)] == [0, 1]
    assert said(made) == []


def test_a_batch_seen_before_is_passed_over():
    made = begun(resume=3)
    give(made, 2)
    assert made.next_job(waiting=False) is None
    assert said(made) == []


def test_a_gap_is_asked_for_once_until_it_is_filled():
    made = begun(credit=4)
    give(made, 1)
    give(made, 2)
    assert said(made) == [Need(sequence=0)]
    give(made, 0)
    give(made, 2)
    assert said(made) == [Need(sequence=1)]


def test_what_arrives_damaged_is_asked_for_again():
    made = begun()
    give(made, 1)
    made.damaged()
    assert said(made) == [Need(sequence=0)] * 2


def test_more_than_the_credit_is_refused_and_changes_nothing():
    made = begun(credit=1)
    give(made, 0)
    with pytest.raises(WireError) as caught:
        give(made, 1)
    assert caught.value.code == "over-credit"
    assert train_one(made) == 0
    give(made, 1)
    assert train_one(made) == 1


def test_more_bytes_than_the_budget_are_refused_until_some_are_trained():
    made = begun(credit=4, budget_bytes=BATCH_BYTES)
    give(made, 0)
    with pytest.raises(WireError) as caught:
        give(made, 1)
    assert caught.value.code == "over-quota"
    train_one(made)
    give(made, 1)


def test_questions_without_end_are_refused():
    made = begun(credit=1)
    for _ in range(OTHER_JOBS + 1):
        made.receive(Fetch(sequence=0), [], NOW)
    with pytest.raises(WireError, match="Too many"):
        made.receive(Fetch(sequence=0), [], NOW)


def test_a_step_that_waits_for_its_gradient_lets_only_that_and_hellos_pass():
    made = begun(credit=4)
    give(made, 0)
    made.receive(Checkpoint(sequence=1), [], NOW)
    made.receive(Gradient(sequence=0), [memoryview(b"g")], NOW)
    assert isinstance(made.next_job(waiting=True).message, Gradient)
    assert made.next_job(waiting=True) is None
    assert train_one(made) == 0
    assert isinstance(made.next_job(waiting=False).message, Checkpoint)


def test_a_hello_drops_what_waited_before_it_and_its_bytes():
    made = begun(credit=4, budget_bytes=BATCH_BYTES)
    give(made, 0)
    again = hello(position=0)
    made.greet(again, NOW, again=True)
    job = made.next_job(waiting=True)
    assert job.message is again
    assert job.again
    made.resume(again, 0)
    made.done(job, [], 0)
    give(made, 0)
    assert train_one(made) == 0


def test_the_answer_to_a_hello_that_was_overtaken_is_not_sent():
    made = session()
    first, second = hello(), hello(position=1)
    made.greet(first, NOW, again=False)
    job = made.next_job(waiting=False)
    made.greet(second, NOW, again=True)
    made.resume(first, 0)
    made.done(job, [(Pong(nonce=1), [])], 0)
    assert said(made) == []
    give(made, 0)
    assert made.next_job(waiting=False).message is second


def test_a_need_of_the_trainer_sets_back_what_is_taken_in():
    made = begun(credit=4)
    give(made, 0)
    give(made, 1)
    job = made.next_job(waiting=False)
    made.done(job, [(Need(sequence=0), [])], 0)
    assert said(made) == [Need(sequence=0)]
    give(made, 0)
    assert [train_one(made), train_one(made)] == [1, 0]


def test_a_failure_is_said_and_ends_the_session():
    made = begun()
    give(made, 0)
    give(made, 1)
    made.fail(made.next_job(waiting=False), WireError("diverged", "The loss is nan.", "Lower the rate."))
    assert said(made) == [
        Error(code="diverged", sentence="The loss is nan.", remedy="Lower the rate.", sequence=0, fatal=True)
    ]
    assert made.failed
    assert made.next_job(waiting=False) is None
    with pytest.raises(WireError) as caught:
        give(made, 2)
    assert caught.value.code == "session-over"


def test_pings_are_answered_at_once_even_after_a_failure_and_not_without_end():
    made = begun()
    made.failed = True
    for nonce in range(3 * OTHER_JOBS):
        made.receive(Ping(nonce=nonce), [], NOW)
    assert said(made) == [Pong(nonce=nonce) for nonce in range(OTHER_JOBS)]


def test_another_plan_and_a_strange_message_are_refused():
    made = begun()
    with pytest.raises(WireError) as caught:
        made.greet(hello(plan=replace(plan(), steps=5)), NOW, again=False)
    assert caught.value.code == "bad-plan"
    with pytest.raises(WireError) as caught:
        made.receive(Bye(), [], NOW)
    assert caught.value.code == "bad-header"
