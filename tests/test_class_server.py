"""A class's server with real devices: a code, then a key; a name for everybody; nobody's trouble is another's."""

from __future__ import annotations

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from mobillm_kit.channel.join import JoinString
from mobillm_kit.classroom.roster import Roster
from mobillm_kit.cli import main
from mobillm_kit.errors import ServerRefused
from mobillm_kit.server.process import serve
from tests import uplink
from tests.builders import tiny_spec
from tests.classroom import WAIT_S, Serving, begin, device, invite, outcome, shown, trained_bytes, views
from tests.uplink import one_thread, trained


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    one_thread()
    folder = tmp_path_factory.mktemp("class")
    tiny_spec(folder)
    return folder


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """What the run of Ada's seed gives on a plain server."""
    folder = tmp_path_factory.mktemp("plain")
    with serve(folder / "server", keys=folder / "server-keys") as server:
        return trained_bytes(device(folder, server.join, "plain"))


def without_code(join: str) -> str:
    parsed = JoinString.parse(join)
    return str(JoinString(parsed.address, parsed.server_key))


def counted(folder, **wanted: int) -> None:
    """Wait until the list has counted so many of an event; lines are shown a moment before."""
    deadline = time.monotonic() + WAIT_S
    for event, times in wanted.items():
        while sum(line.counts.get(event, 0) for line in Roster(folder / "class.sqlite").lines()) < times:
            assert time.monotonic() < deadline, wanted
            time.sleep(0.05)


def events(folder) -> list[dict]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_class_of_three_trains_at_once_is_named_and_each_rejoins_by_its_key_alone(tmp_path, oracle):
    bio = tmp_path / "bio"
    joins = begin(bio, "Ada", "Ben", "Chloé", board=True)
    with Serving(bio) as server:
        running = [device(tmp_path, join, name, "--seed", str(n)) for n, (name, join) in enumerate(joins.items())]
        sides = [trained_bytes(process) for process in running]
        assert sides[0] == oracle
        assert len(set(sides)) == 3  # another seed, another side network: the equality above says something
        for name in joins:
            server.until(f"{name} joined")
            server.until(f"{name} left: said farewell")
        both = device(tmp_path, joins["Ada"], "thief"), device(tmp_path, invite(bio, "Dan")["Dan"], "Ada")
        other, mixed = map(outcome, both)
        counted(bio, refused=2)
        ours, own = (shown(link, lambda look: "students" in look) for link in server.links())
        server.process.kill()
    assert (other[0], mixed[0]) == (2, 2)
    assert "This code was used already, on another device. Join with that device, or ask the instructor" in other[1]
    assert "This device is Ada's, and the code is another student's. Each student has a device" in mixed[1]
    assert [(one["name"], one["state"], one["refused"]) for one in ours["students"]] == [
        ("Ada", "done", 1), ("Ben", "done", 0), ("Chloé", "done", 0), ("Dan", "invited", 0),
    ]  # fmt: skip
    assert all((one["step"], one["steps"], len(one["points"])) == (6, 6, 6) for one in ours["students"][:3])
    assert ours["counts"] == {"trains": 0, "waits": 0, "done": 3}
    assert own["students"] == ours["students"]
    assert {*own} - {*ours} == {"controls", "strangers", "events"}
    assert own["strangers"] == 1
    assert {(event["event"], event["student"]) for event in own["events"][:2]} == {("refused", ""), ("refused", "Ada")}
    with Serving(bio) as server:  # a new life of the server, and of the device; no code
        assert trained_bytes(device(tmp_path, without_code(joins["Ada"]), "Ada")) == oracle
        server.until("Ada left: said farewell")
    said = events(bio)
    assert {(event["event"], event["student"]) for event in said} == {
        *((event, name) for event in ("joined", "left") for name in joins),
        *(("refused", name) for name in ("", "Ada")),
    }
    assert [event["steps"] for event in said if event["event"] == "left"] == [6, 6, 6, 6]
    ada, _, _, dan, unknown = Roster(bio / "class.sqlite").lines()
    assert (ada.counts, ada.sessions, ada.steps) == ({"joined": 2, "left": 2, "refused": 1}, 2, 12)
    sent = [event["bytes"] for event in said if event["event"] == "left" and event["student"] == "Ada"]
    assert ada.n_bytes == sum(sent) > 2 * 10_000
    assert (dan.state, unknown.counts) == ("invited", {"refused": 1})


def test_who_is_kicked_stops_training_and_stays_out_until_invited_again(place, tmp_path):
    bio = tmp_path / "bio"
    joins = begin(bio, "Ada", "Ben")
    with Serving(bio) as server:
        long = device(tmp_path, joins["Ada"], "Ada", steps=100_000)
        other = device(tmp_path, joins["Ben"], "Ben", steps=100_000)
        try:
            server.until("Ada joined")
            server.until("Ben joined")
            deadline = time.monotonic() + WAIT_S
            while not all(line.steps and line.training == 1 for line in Roster(bio / "class.sqlite").lines()):
                assert time.monotonic() < deadline  # seen while it goes on
                time.sleep(0.2)
            assert main(["class", "kick", str(bio), "ada"]) == 0
            asked = time.monotonic()
            server.until("Ada left: turned out")
            assert time.monotonic() - asked < 10
            status, said = outcome(long)
            assert (status, "taken off the list" in said) == (2, True), said
            assert other.poll() is None  # nobody else's trouble
        finally:
            for process in (long, other):
                process.kill()
                process.communicate()
        keys = str(tmp_path / "keys-Ada")
        with pytest.raises(ServerRefused, match=r"Ada was removed from this class\. Ask the instructor for a new"):
            trained(place, joins["Ada"], keys=keys)
        assert trained(place, invite(bio, "Ada")["Ada"], keys=keys)
        server.until("Ada joined", 2)


def test_a_database_that_breaks_under_a_server_costs_a_sentence_and_who_is_known_trains_on(place, tmp_path):
    bio = tmp_path / "bio"
    joins = begin(bio, "Ada", "Ben")
    database = bio / "class.sqlite"
    with Serving(bio) as server:
        before = trained(place, joins["Ada"], keys=str(tmp_path / "ada"))[0]
        counted(bio, left=1)
        whole = database.read_bytes()
        database.write_bytes(b"no database" * 1000)
        assert trained(place, joins["Ada"], keys=str(tmp_path / "ada"))[0] == before
        with pytest.raises(ServerRefused, match="The class's list cannot be used at present"):
            trained(place, joins["Ben"], keys=str(tmp_path / "ben"))
        server.until("it is damaged")
        database.write_bytes(whole)
        assert trained(place, joins["Ben"], keys=str(tmp_path / "ben"))[0] == before
        server.until("Ben joined")
    assert not any("Traceback" in json.dumps(event) for event in events(bio))


def test_the_board_shows_the_losses_that_the_server_knows_and_a_new_server_shows_the_same_runs(place, tmp_path):
    bio = tmp_path / "bio"
    joins = begin(bio, "Ada", "Ben", board=True)
    with Serving(bio) as server:
        links = server.links()
        curve = trained(place, joins["Ada"], keys=str(tmp_path / "ada"))[1].curve
        trained(place, joins["Ben"], keys=str(tmp_path / "ben"), labels="device")
        ada, ben = shown(links[0], lambda look: look["counts"]["done"] == 2)["students"]
        halves = ada["points"][:6], ada["points"][6:]
        assert [sum(half) / 6 for half in halves] == [pytest.approx(p.train_loss, rel=6e-3) for p in curve[1:]]
        assert (ada["per"], len(halves[1])) == (1, 6)
        assert "points" not in ben
        assert (ben["step"], ben["steps"], ben["measure"]) == (12, 12, "")  # the loss stays on the device
    with Serving(bio) as server:
        assert server.links() == links
        again = shown(links[0], lambda look: "students" in look)["students"]
        assert [(one["state"], one["step"], one["mib"]) for one in again] == [
            ("done", 12, one["mib"]) for one in (ada, ben)
        ]


def test_a_pace_holds_students_back_is_shown_and_changes_no_byte(place, tmp_path):
    bio = tmp_path / "bio"
    joins = begin(bio, "Ada", board=True)
    settings = bio / "settings.toml"
    settings.write_text(settings.read_text().replace("steps_per_second = 0.0", "steps_per_second = 4"))
    with Serving(bio) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(trained, place, joins["Ada"], keys=str(tmp_path / "ada"))
        (ada,) = shown(server.links()[0], lambda look: any("held" in s["note"] for s in look.get("students", [])))[
            "students"
        ]
        assert (ada["state"], ada["note"]) == ("trains", "held back: 4 steps a second at most")
        side, _ = running.result()
        server.until("Ada left: said farewell")
    (run,) = Roster(bio / "class.sqlite").runs()
    assert run.ended - run.began >= (12 - 2) / 4  # the first step, and one that is made good
    assert side == trained(place, "in-process")[0]


def test_one_server_at_a_time_and_none_without_a_list(tmp_path, capsys):
    bio = tmp_path / "bio"
    begin(bio, "Ada")
    with Serving(bio):
        assert main(["class", "serve", str(bio)]) == 2
        assert "another run is writing into this folder" in capsys.readouterr().err
    (bio / "class.sqlite").write_bytes(b"x" * 5000)
    assert main(["class", "serve", str(bio)]) == 2
    assert "it is damaged" in capsys.readouterr().err


@pytest.mark.faults
def test_a_run_goes_on_by_itself_when_the_server_is_killed_and_begun_again(place, tmp_path):
    bio = tmp_path / "bio"
    joins = begin(bio, "Ada", "Ben")
    with ExitStack() as servers:
        first = servers.enter_context(Serving(bio))
        undisturbed = trained(place, joins["Ben"], keys=str(tmp_path / "ben"))[0]

        def strike(step: int) -> None:
            if step == 6:
                first.process.kill()
                first.process.wait(20)
                servers.enter_context(Serving(bio))

        assert trained(place, joins["Ada"], keys=str(tmp_path / "ada"), after_step=strike)[0] == undisturbed
    told = [(event["event"], event.get("why")) for event in events(bio) if event.get("student") == "Ada"]
    assert told == [("joined", None), ("joined", None), ("left", "said farewell")]
    ada = Roster(bio / "class.sqlite").lines()[0]
    assert (ada.sessions, ada.training, ada.steps) == (1, 0, 12)


@pytest.mark.faults
def test_where_all_places_are_taken_devices_wait_in_line_and_end_in_the_same_bytes(tmp_path, oracle):
    bio = tmp_path / "bio"
    joins = begin(bio, "Ada", "Ben", "Cleo")
    settings = bio / "settings.toml"
    settings.write_text(settings.read_text().replace("max_sessions = 32", "max_sessions = 1"))
    with Serving(bio) as server:
        first = device(tmp_path, joins["Ada"], "Ada", steps=100_000)
        server.until("Ada joined")
        second = device(tmp_path, joins["Ben"], "Ben")
        server.until("Ben waits: number 1 in line")
        third = device(tmp_path, joins["Cleo"], "Cleo")
        server.until("Cleo waits: number 2 in line")
        time.sleep(12)  # longer than a stranger may stay
        first.send_signal(signal.SIGINT)
        outcome(first)
        waited = [outcome(second), outcome(third)]
    for status, said in waited:
        assert status == 0, said
        assert Path(said.rsplit("Kept in ", 1)[1].split("\n")[0], "side", "model.safetensors").read_bytes() == oracle
    assert "All places of this class are taken: you are number 1 in line." in waited[0][1]
    assert "you are number 2 in line" in waited[1][1]
    assert "It is your turn." in waited[1][1]
    told = [(event["event"], event["student"]) for event in events(bio)]
    assert told.index(("joined", "Ben")) < told.index(("joined", "Cleo"))
    assert told.count(("waits", "Ben")) == told.count(("waits", "Cleo")) == 1


@pytest.mark.faults
def test_thirty_sessions_at_once_end_in_the_same_bytes_under_a_board_that_many_look_at(place, tmp_path, monkeypatch):
    lock, whole = threading.Lock(), uplink.prepare

    def prepare(spec):
        with lock:  # transformers loads one model at a time in a process
            return whole(spec)

    monkeypatch.setattr(uplink, "prepare", prepare)
    bio, names = tmp_path / "bio", [f"student {n:02d}" for n in range(1, 31)]
    joins = begin(bio, *names, board=True)
    alone = trained(place, "in-process")[0]
    with Serving(bio) as server, ExitStack() as viewers:
        for _ in range(10):  # they look and read little
            next(viewers.enter_context(views(server.links()[0])))
        with ThreadPoolExecutor(30) as pool:
            ran = pool.map(lambda name: trained(place, joins[name], keys=str(tmp_path / name)), names)
            assert {side for side, _ in ran} == {alone}
        seen = shown(server.links()[0], lambda look: look["counts"]["done"] == 30)
    assert [one["name"] for one in seen["students"]] == names
    assert len({tuple(one["points"]) for one in seen["students"]}) == 1  # one seed, one curve
    assert len(seen["students"][0]["points"]) == 12
    assert len(json.dumps(seen)) < 30_000  # what a viewer is sent each second
