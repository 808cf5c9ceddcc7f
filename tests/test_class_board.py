"""The board of a class: two links, what each shows, and no browser that costs more than its bound."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import sys
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillm_kit.classroom import serving
from mobillm_kit.classroom.curve import Curve
from mobillm_kit.classroom.folder import ClassFolder
from mobillm_kit.classroom.links import Tokens, load_or_make_tokens
from mobillm_kit.classroom.roster import Roster
from mobillm_kit.cli import main
from mobillm_kit.errors import BadInput
from tests.classroom import begin, free_port, views

board_module = pytest.importorskip("mobillm_kit.classroom.board", reason="needs the extra class")

WAIT_S = 20.0
TOKENS = Tokens("v" * 24, "i" * 24)
LOSSES = st.lists(st.floats(0, 100), max_size=300)


# --- the curve


@given(LOSSES, st.integers(0, 300), st.sampled_from([2, 4, 40]))
def test_a_curve_is_bounded_and_says_of_all_steps_what_their_mean_is(losses, first, most):
    curve, at_once = Curve(most), Curve(most)
    curve.follow(losses[:first])
    curve.follow(losses)
    at_once.follow(losses)
    points = curve.points()
    assert points == at_once.points()
    assert len(points) == -(-len(losses) // curve.per) <= most
    if losses:
        weights = [curve.per] * (len(points) - 1) + [len(losses) - curve.per * (len(points) - 1)]
        total = sum(point * weight for point, weight in zip(points, weights, strict=True))
        assert total == pytest.approx(sum(losses), abs=1e-9)
        assert curve.lately == pytest.approx(sum(losses[-8:]) / len(losses[-8:]))


def test_a_curve_by_hand_and_one_that_was_rolled_back():
    curve = Curve(4)
    curve.follow([1.0, 3.0, 5.0, 7.0, 9.0])
    assert (curve.per, curve.points()) == (2, [2.0, 6.0, 9.0])
    curve.follow([4.0, 4.0])
    assert (curve.per, curve.points(), curve.seen) == (1, [4.0, 4.0], 2)


# --- the links


def test_links_are_random_for_their_owners_eyes_and_the_same_at_the_next_start(tmp_path):
    file = tmp_path / "board.toml"
    made = load_or_make_tokens(file)
    assert load_or_make_tokens(file) == made != load_or_make_tokens(tmp_path / "other.toml")
    assert (made.role(made.viewer), made.role(made.instructor), made.role(""), made.role("ü")) == (
        "class", "instructor", None, None,
    )  # fmt: skip
    if os.name != "nt":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("viewer = 3", "missing required field|Expected `str`"),
        (f'viewer = "{"a" * 24}"\ninstructor = "{"a" * 24}"', "viewer and instructor have one token"),
        (f'viewer = "short"\ninstructor = "{"a" * 24}"', "length >= 20"),
        ("\x00", "board.toml"),
    ],
)
def test_a_file_of_links_that_cannot_be_used_is_named(tmp_path, text, why):
    file = tmp_path / "board.toml"
    file.write_text(text)
    with pytest.raises(BadInput, match=why) as refused:
        load_or_make_tokens(file)
    assert "makes new links" in refused.value.remedy


# --- a board that browsers ask


@pytest.fixture
def board(tmp_path):
    """One that shows little, and the port where it does; the roster is a real one."""
    roster, port = Roster.make(tmp_path / "class.sqlite"), free_port()
    roster.invite(["Ada"])
    shown = board_module.Board(TOKENS, roster.remove)
    shown.show((b'{"for": "class"}', b'{"for": "instructor"}'))
    with board_module.shown(shown, socket.create_server(("127.0.0.1", port))):
        yield SimpleNamespace(port=port, roster=roster, show=shown.show)


def ask(board, path: str, method: str = "GET", body: bytes | None = None, token: str = "") -> tuple[int, str, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", board.port, timeout=WAIT_S)
    connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.headers)
    connection.close()
    return found


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=vvv", "/events", "/events?token=%FF", f"/?x={'v' * 24}"])
def test_who_has_no_link_sees_a_sentence(board, path):
    status, said, headers = ask(board, path)
    assert (status, said.split(".")[0]) == (403, "This is no link of this class's board")
    assert headers["cache-control"] == "no-store"


def test_the_page_loads_nothing_from_elsewhere_and_holds_no_token(board):
    for token in (TOKENS.viewer, TOKENS.instructor):
        status, page, headers = ask(board, f"/?token={token}")
        assert status == 200
        assert token not in page
        assert "http" not in page
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["content-security-policy"].startswith("default-src 'none'")
    for name in ("board.css", "board.js"):
        status, text, _ = ask(board, f"/{name}")
        assert status == 200
        assert text.count("http") == text.count("http://www.w3.org/2000/svg")
    for path, method in (("/log.jsonl", "GET"), ("/../board.toml", "GET"), ("/kick", "GET"), ("/", "POST")):
        assert ask(board, path, method)[0] == 404


def test_each_link_is_shown_its_own_view_and_what_is_new(board):
    with ExitStack() as streams:
        one, two = (
            streams.enter_context(views(f"http://127.0.0.1:{board.port}/?token={token}"))
            for token in (TOKENS.viewer, TOKENS.instructor)
        )
        assert (next(one), next(two)) == ({"for": "class"}, {"for": "instructor"})
        board.show((b'{"new": 1}', b'{"new": 2}'))
        assert (next(one), next(two)) == ({"new": 1}, {"new": 2})


def test_only_the_instructors_link_takes_a_student_off(board):
    asked = json.dumps({"student": "ada"}).encode()
    assert ask(board, "/kick", "POST", asked)[0] == 403
    status, said, _ = ask(board, "/kick", "POST", asked, TOKENS.viewer)
    assert (status, "may only watch" in said) == (403, True)
    assert board.roster.lines()[0].state == "invited"
    for body in (b"", b"[]", b'{"student": 3}', b'{"name": "Ada"}', b'{"student": "' + 5000 * b"a" + b'"}'):
        status, said, _ = ask(board, "/kick", "POST", body, TOKENS.instructor)
        assert (status, "A student to take off is asked for" in said) == (400, True)
    status, said, _ = ask(board, "/kick", "POST", b'{"student": "Adda"}', TOKENS.instructor)
    assert (status, said) == (409, "Nobody in this class is called 'Adda'. Did you mean 'Ada'?")
    status, said, _ = ask(board, "/kick", "POST", asked, TOKENS.instructor)
    assert (status, said.split(" is ")[0]) == (200, "Ada")
    assert board.roster.lines()[0].state == "removed"


# --- browsers that mean harm


def closed_after(connection: socket.socket) -> tuple[float, int]:
    """Seconds until the other side closes, and the bytes that come before."""
    connection.settimeout(WAIT_S)
    began, n_bytes = time.monotonic(), 0
    with suppress(ConnectionError):
        while came := connection.recv(65536):
            n_bytes += len(came)
    return time.monotonic() - began, n_bytes


@pytest.mark.parametrize("sent", [b"", b"GET /?token=", b"x" * 9000])
def test_half_a_request_is_not_waited_for(monkeypatch, board, sent):
    monkeypatch.setattr(board_module, "REQUEST_S", 0.4)
    with socket.create_connection(("127.0.0.1", board.port)) as slow:
        slow.sendall(sent)
        assert closed_after(slow)[0] < 5


def test_who_reads_nothing_is_let_go_and_nobody_else_notices(monkeypatch, board):
    monkeypatch.setattr(board_module, "STUCK_S", 0.5)
    with socket.socket() as deaf, views(f"http://127.0.0.1:{board.port}/?token={TOKENS.viewer}") as seen:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", board.port))
        deaf.sendall(f"GET /events?token={TOKENS.viewer} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        next(seen)
        for number in range(8):
            board.show((json.dumps({"n": number, "much": "x" * 2_000_000}).encode(), b"{}"))
            assert next(seen)["n"] == number
        seconds, n_bytes = closed_after(deaf)
        assert seconds < 5
        assert n_bytes < 8_000_000  # of sixteen: what the system's own buffers held


def test_nobody_fills_the_board_up(monkeypatch, board):
    monkeypatch.setattr(board_module, "MOST_OF_ONE", 3)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(socket.create_connection(("127.0.0.1", board.port)))
        with socket.create_connection(("127.0.0.1", board.port)) as more:
            assert closed_after(more)[0] < 2
    deadline = time.monotonic() + WAIT_S
    while True:  # they have gone, and their places are free
        try:
            assert ask(board, f"/?token={TOKENS.viewer}")[0] == 200
            break
        except ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# --- a class without one


@pytest.fixture
def opened(tmp_path, capsys):
    """Tries to open the board of a class; what it said."""
    begin(tmp_path / "bio", "Ada", board=True)
    folder = ClassFolder(tmp_path / "bio")

    def attempt() -> tuple[bool, str]:
        said: list[str] = []
        with ExitStack() as stack:
            tokens, roster = load_or_make_tokens(folder.tokens), Roster(folder.database)
            return serving._board(folder.settings(), tokens, roster, stack, said.append) is not None, " ".join(said)

    return SimpleNamespace(attempt=attempt, folder=folder)


def test_without_the_extra_a_sentence_says_how_to_get_it_and_the_class_goes_on(opened, monkeypatch):
    monkeypatch.delitem(sys.modules, "mobillm_kit.classroom.board")
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    there, said = opened.attempt()
    assert not there
    assert "is not installed: pip install 'mobillm-kit[class]'. The class is served without it." in said


def test_a_port_that_is_taken_costs_the_board_alone(opened):
    with socket.create_server(("127.0.0.1", opened.folder.settings().board)):
        there, said = opened.attempt()
    assert not there
    assert "cannot listen at port" in said
    assert "the line `board` in settings.toml. The class is served without its board." in said
    there, said = opened.attempt()
    assert there
    assert said.count("?token=") == 2


@pytest.mark.parametrize(("board", "why"), [("7000", "both name port 7000"), ("70000", "<= 65535"), ('"a"', "int")])
def test_a_port_that_cannot_be_is_refused_by_a_sentence(tmp_path, capsys, board, why):
    bio = tmp_path / "bio"
    begin(bio, "Ada")
    settings = bio / "settings.toml"
    text = settings.read_text().replace("board = 0", f"board = {board}")
    settings.write_text("\n".join(['bind = "tcp://127.0.0.1:7000"' if "bind =" in t else t for t in text.split("\n")]))
    assert main(["class", "serve", str(bio)]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert "settings.toml" in said
