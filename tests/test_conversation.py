"""The device's session without a clock, a socket or a thread: what it says to what it hears, and when."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mobillm_kit.channel.frames import to_frames
from mobillm_kit.channel.messages import (
    VERSION,
    Ack,
    Bye,
    Checkpoint,
    Durable,
    Error,
    Fetch,
    FrameInfo,
    Hello,
    Logits,
    Need,
    Ping,
    Pong,
    Result,
    Welcome,
)
from mobillm_kit.channel.timings import Timings
from mobillm_kit.device.conversation import ConnectionLost, Conversation
from mobillm_kit.errors import ServerGone, ServerRefused, TrainingDiverged
from tests.faults.flood import batch, plan

TIMES = Timings()
BEGAN = 1000.0


def conversation(position: int = 0, patience_s: float = 20.0) -> Conversation:
    hello = Hello(session="f" * 32, name="test", code="", position=0, plan=plan(), frames=[])
    return Conversation(hello, position=position, now=BEGAN, patience_s=patience_s)


def begun(resume: int = 0, credit: int = 2, held=(), position: int = 0) -> Conversation:
    link = conversation(position)
    assert link.connected(BEGAN).position == position
    link.take(welcome(resume, credit, held), [], BEGAN)
    return link


def welcome(resume: int = 0, credit: int = 2, held=(), first: int | None = None) -> Welcome:
    said = {"version": VERSION, "resume": resume, "credit": credit, "budget_bytes": 2**30}
    return Welcome(**said, held=list(held), first=first)


def ack(sequence: int, loss: float = 0.5, cached: bool = False) -> Ack:
    return Ack(sequence=sequence, loss=loss, cached=cached, queue_s=0.0, decode_s=0.0, train_s=0.0)


def error(code: str, fatal: bool = True) -> Error:
    return Error(code=code, sentence="It is so.", remedy="Do this.", sequence=None, fatal=fatal)


def send(link: Conversation, sequence: int, now: float = BEGAN) -> bool:
    message, _ = batch(sequence)
    assert link.offer(message, to_frames(message))
    return link.next_upload(now) is not None


def test_nothing_leaves_before_the_welcome():
    link = conversation()
    link.connected(BEGAN)
    link.ask(Fetch(sequence=0))
    assert not send(link, 0)
    assert link.next_request() is None


def test_first_weights_are_asked_for_part_by_part_and_batches_wait_for_the_last():
    link = conversation()
    link._hello = replace(link._hello, plan=replace(plan(), first=FrameInfo(n_bytes=100, digest=bytes(16))))
    link.connected(BEGAN)
    link.take(welcome(first=0), [], BEGAN)
    assert (link.first_at, link.welcome) == (0, False)
    assert not send(link, 0)
    link.part_bytes = 60
    link.take(welcome(first=60), [], BEGAN + 1)
    assert (link.first_at, link.part_bytes) == (60, 0)
    link.connected(BEGAN + 2)
    assert link.first_at is None  # until the next welcome says so
    link.take(welcome(first=60), [], BEGAN + 2)
    link.take(welcome(), [], BEGAN + 3)
    assert (link.first_at, link.welcome) == (None, True)
    assert send(link, 0)


def test_parts_that_arrive_are_progress_and_welcomes_alone_are_not():
    link = conversation()
    link._hello = replace(link._hello, plan=replace(plan(), first=FrameInfo(n_bytes=100, digest=bytes(16))))
    now = BEGAN
    for sent in [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]:
        now += 6.0
        link.patience.heard(now)
        link.patience.lost(now)
        link.connected(now)
        link.take(welcome(first=0), [], now)
        link.part_bytes = sent
        link.take(welcome(first=sent), [], now)
    with pytest.raises(ServerGone, match="no batch came through"):
        link.patience.lost(now + 6.0)


def test_a_part_that_is_not_answered_is_asked_about_and_a_slow_one_is_waited_for():
    link = conversation()
    link._hello = replace(link._hello, plan=replace(plan(), first=FrameInfo(n_bytes=2**21, digest=bytes(16))))
    link.connected(BEGAN)
    link.take(welcome(first=0), [], BEGAN)
    link.part_bytes = 2**20
    slow_s = 2**20 / TIMES.slowest_link_bytes_per_s
    link.patience.heard(BEGAN + slow_s)
    assert not any(isinstance(said, Hello) for said in link.tick(BEGAN + slow_s))
    link.patience.heard(BEGAN + slow_s + TIMES.stall_s + 1)
    assert any(isinstance(said, Hello) for said in link.tick(BEGAN + slow_s + TIMES.stall_s + 1))


def test_as_many_batches_leave_as_there_is_credit_and_one_more_waits():
    link = begun(credit=2)
    assert send(link, 0)
    assert send(link, 1)
    assert not send(link, 2)
    link.take(ack(0), [], BEGAN)
    assert link.next_upload(BEGAN) is not None
    assert link.wanted == 3


def test_a_batch_that_is_not_wanted_is_not_taken():
    link = begun(resume=4)
    message, _ = batch(3)
    assert not link.offer(message, to_frames(message))


def test_losses_come_in_the_order_of_the_steps_whatever_the_order_of_the_acknowledgements():
    link = begun(credit=3)
    for sequence in range(3):
        send(link, sequence)
    link.take(ack(1, 1.0), [], BEGAN)
    assert link.take_losses() == []
    assert not link.trained(2)
    link.take(ack(0, 0.0), [], BEGAN)
    assert link.take_losses() == [0.0, 1.0]
    assert link.trained(2)
    assert not link.trained(3)


def test_an_acknowledgement_of_what_was_never_sent_changes_nothing():
    link = begun()
    assert link.take(ack(0), [], BEGAN) is None
    assert link.wanted == link.acked == 0


def test_an_acknowledgement_names_the_batch_and_the_moment_it_left():
    link = begun()
    send(link, 0, BEGAN + 1)
    upload = link.take(ack(0), [], BEGAN + 3)
    assert upload is not None
    assert upload.sent_at == BEGAN + 1
    assert upload.message.sequence == 0


@pytest.mark.parametrize("cached", [True, False])
def test_the_server_holds_what_is_on_its_way_and_what_it_says_it_keeps(cached):
    link = begun(held=[(3, 3)])
    assert link.holds(3)
    assert not link.holds(0)
    send(link, 0)
    assert link.holds(0)
    link.take(ack(0, cached=cached), [], BEGAN)
    assert link.holds(0) is cached


def test_a_need_makes_the_batch_again_and_what_the_server_was_thought_to_hold():
    link = begun(credit=3, held=[(0, 3)])
    for sequence in range(3):
        send(link, sequence)
    link.take(Need(sequence=1), [], BEGAN)
    assert link.wanted == 1
    assert send(link, 1)
    link.take(ack(0), [], BEGAN)
    link.take(Need(sequence=0), [], BEGAN)  # overtaken
    assert link.wanted == 2


def test_a_new_connection_forgets_what_was_under_way_and_asks_where_training_stands():
    link = begun()
    send(link, 0)
    link.take(ack(0), [], BEGAN)
    send(link, 1)
    assert link.connected(BEGAN).position == 1
    assert link.take(ack(1), [], BEGAN) is None  # meant for the connection before
    link.take(welcome(resume=1), [], BEGAN)
    assert link.wanted == 1
    assert send(link, 1)


def test_a_second_welcome_answers_a_hello_that_was_answered_already():
    link = begun()
    send(link, 0)
    link.take(welcome(resume=0), [], BEGAN)
    assert link.wanted == 1


def test_a_question_waits_for_the_batch_before_it_and_is_asked_once():
    link = begun(credit=1)
    send(link, 0)
    assert not send(link, 1)
    link.ask(Fetch(sequence=2), 100)
    assert link.next_request() is None
    link.take(ack(0), [], BEGAN)
    link.next_upload(BEGAN)
    assert link.next_request() == Fetch(sequence=2)
    assert link.next_request() is None
    link.take(Result(sequence=1), [memoryview(b"old")], BEGAN)
    assert link.result is None
    link.take(Result(sequence=2), [memoryview(b"new")], BEGAN)
    assert link.result == b"new"


def test_a_question_about_steps_that_are_made_again_is_forgotten():
    link = begun(resume=5)
    link.ask(Checkpoint(sequence=5))
    link.connected(BEGAN)
    link.take(welcome(resume=3), [], BEGAN)
    assert link.next_request() is None


def test_what_a_server_has_lost_is_no_longer_durable():
    link = begun(resume=5)
    link.take(Durable(sequence=5), [], BEGAN)
    assert link.durable == 5
    link.connected(BEGAN)
    link.take(welcome(resume=3), [], BEGAN)
    assert link.durable == 3


def test_logits_are_answered_once_and_the_loss_is_the_devices():
    link = begun()
    send(link, 0)
    asked = Logits(sequence=0, rows=4, columns=2)
    assert link.wants_gradient(asked, BEGAN)
    link.own_losses[0] = 7.0
    link.take(ack(0, loss=0.0), [], BEGAN)
    assert link.take_losses() == [7.0]
    assert not link.wants_gradient(asked, BEGAN)


@pytest.mark.parametrize(
    ("message", "raised"),
    [
        (error("hello-first", fatal=False), ConnectionLost),
        (Bye(), ConnectionLost),
        (error("diverged"), TrainingDiverged),
        (error("bad-plan"), ServerRefused),
        (welcome(resume=10**6), ServerRefused),
    ],
)
def test_what_ends_a_connection_and_what_ends_the_session(message, raised):
    link = begun()
    if isinstance(message, Welcome):
        link.connected(BEGAN)
    with pytest.raises(raised):
        link.take(message, [], BEGAN)


def test_a_refusal_that_is_not_fatal_is_passed_over():
    assert begun().take(error("over-credit", fatal=False), [], BEGAN) is None


@pytest.mark.parametrize("asked", [2, 3])
def test_a_question_about_another_step_is_refused_to_who_asks_it_and_not_to_who_once_did(asked):
    link = begun()
    link.ask(Fetch(sequence=asked), 100)
    refusal = Error(code="bad-sequence", sentence="", remedy="", sequence=2, fatal=False)
    if asked == 2:
        with pytest.raises(ServerRefused):
            link.take(refusal, [], BEGAN)
    else:
        assert link.take(refusal, [], BEGAN) is None  # of a message that came a second time


# --- time


def test_quiet_is_broken_by_one_ping_until_something_is_heard():
    link = begun()
    assert link.tick(BEGAN + TIMES.ping_s) == []
    (ping,) = link.tick(BEGAN + TIMES.ping_s + 0.1)
    assert isinstance(ping, Ping)
    assert link.tick(BEGAN + 2 * TIMES.ping_s + 0.2) == []
    link.patience.heard(BEGAN + 3)
    link.take(Pong(nonce=ping.nonce), [], BEGAN + 3)
    assert len(link.tick(BEGAN + 3 + TIMES.ping_s + 0.1)) == 1


def test_silence_is_a_loss_and_a_large_batch_on_its_way_is_no_silence():
    link = begun()
    link.tick(BEGAN + TIMES.silence_s)
    with pytest.raises(ConnectionLost):
        link.tick(BEGAN + TIMES.silence_s + 0.1)
    link = begun()
    message, payloads = batch(0)
    frames = to_frames(message, payloads)
    link.offer(message, frames)
    link.next_upload(BEGAN)
    transfer_s = sum(map(len, frames)) / TIMES.slowest_link_bytes_per_s
    link.tick(BEGAN + TIMES.silence_s + transfer_s - 0.1)
    with pytest.raises(ConnectionLost):
        link.tick(BEGAN + TIMES.silence_s + transfer_s + 0.1)


def test_an_answer_that_does_not_come_is_asked_for_and_each_time_later():
    link = begun()
    send(link, 0)
    asked, now = [], BEGAN
    while len(asked) < 3:
        now += 0.5
        link.patience.heard(now)
        if any(isinstance(message, Hello) for message in link.tick(now)):
            asked.append(now)
    gaps = [later - sooner for sooner, later in zip([BEGAN, *asked], asked, strict=False)]
    assert gaps == pytest.approx([TIMES.stall_s, 2 * TIMES.stall_s, 4 * TIMES.stall_s], abs=1.0)


def test_a_server_that_answers_and_trains_nothing_is_given_up():
    link = begun()
    send(link, 0)
    link.patience.heard(BEGAN + TIMES.stuck_s + 1)
    with pytest.raises(ServerGone, match="trained nothing"):
        link.tick(BEGAN + TIMES.stuck_s + 1)


def test_a_session_that_waits_for_nothing_is_never_stuck():
    link = begun()
    link.patience.heard(BEGAN + TIMES.stuck_s + 1)
    assert len(link.tick(BEGAN + TIMES.stuck_s + 1)) <= 1


def test_patience_ends_after_silence_and_after_too_many_losses():
    link = begun()
    link.patience.lost(BEGAN + 19.9)
    with pytest.raises(ServerGone, match="not answered"):
        link.patience.lost(BEGAN + 20.1)
    link = begun()
    for loss in range(TIMES.lost_in_a_row - 1):
        link.patience.heard(BEGAN + 10 * loss)
        link.patience.lost(BEGAN + 10 * loss)
    link.patience.heard(BEGAN + 50)
    with pytest.raises(ServerGone, match="lost 5 times"):
        link.patience.lost(BEGAN + 50)


def test_a_trained_step_renews_patience():
    link = begun(credit=4)
    for loss in range(3 * TIMES.lost_in_a_row):
        now = BEGAN + 10 * loss
        link.connected(now)
        link.take(welcome(resume=loss), [], now)
        send(link, loss, now)
        link.patience.heard(now)
        link.take(ack(loss), [], now)
        link.patience.lost(now)


def test_a_handshake_gets_what_is_left_of_patience():
    patience = conversation().patience
    assert patience.handshake_s(BEGAN) == TIMES.handshake_s
    assert patience.handshake_s(BEGAN + 18) == pytest.approx(2.0)
    assert patience.handshake_s(BEGAN + 100) == TIMES.shortest_handshake_s


def test_a_number_in_line_is_said_where_it_changes_and_who_waits_is_not_stuck(caplog):
    link = conversation()
    link.connected(BEGAN)
    for minute, sentence in enumerate(["number 2", "number 2", "number 1"], 1):
        now = BEGAN + 0.9 * minute * TIMES.stuck_s
        link.patience.heard(now)
        link.take(replace(error("too-many-sessions", fatal=False), sentence=sentence), [], now)
        link.patience.heard(now + TIMES.stall_s + 1)  # a pong
        assert any(isinstance(said, Hello) for said in link.tick(now + TIMES.stall_s + 1))  # asks where it stands
    assert [record.message for record in caplog.records] == ["number 2", "number 1"]
    with pytest.raises(ServerRefused, match="too-many-sessions"):
        link.take(error("too-many-sessions"), [], now)
