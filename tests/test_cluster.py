"""Jobs on a real Ray cluster of two nodes on this machine: the records of one machine; a cluster of our own is closed.

Ray is an extra of its own (`make cluster` installs it and runs this file).  What needs no Ray runs everywhere.
"""

from __future__ import annotations

import importlib.util
import socket
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from safetensors.torch import load_file

from mobillm_kit.cluster.need import need_of
from mobillm_kit.cluster.order import Desk, packed, places, unpack, worth_saying
from mobillm_kit.cluster.place import runner_on
from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.memory.prediction import RUNTIME_BYTES
from mobillm_kit.record import RunRecord
from mobillm_kit.runs.compare import Job, compare
from mobillm_kit.runs.folders import lay_out
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.spec import RunSpec
from tests.builders import tiny_spec

ROOT = Path(__file__).resolve().parents[1]
HERE = importlib.util.find_spec("ray") is not None
UNCLOSED = ("ResourceWarning", "DeprecationWarning", "FutureWarning", "pytest.PytestUnraisableExceptionWarning")
on_ray = pytest.mark.skipif(not HERE, reason="ray is not installed: `make cluster` installs the extra and runs this")
MOST_S = 180.0

# Ray leaves the files of its processes' logs to the garbage collector
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in UNCLOSED]


# ---------------------------------------------------------------------- without Ray


def test_files_travel_whole(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    unpack(there, {"record.json": b"{}", "side/model.safetensors": b"\x00\xff"})
    (there / ".lock").touch()
    unpack(here, packed(there))
    assert sorted(path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()) == [
        "record.json",
        "side/model.safetensors",
    ]
    assert (here / "side/model.safetensors").read_bytes() == b"\x00\xff"
    assert packed(there, newer_than=time.time() + 60) == {}


def test_a_desk_tells_once_and_says_who_has_to_stop():
    desk = Desk()
    assert desk.tell(3, [Progress(step=1)]) is False
    desk.stop()
    assert desk.tell(4, []) is True
    assert desk.heard() == [(3, Progress(step=1))]
    assert desk.heard() == []


def test_of_progress_the_last_word_is_said_and_what_is_not_said_twice():
    note, look = Progress(note="a text was cut"), Progress(step=2, dev_accuracy=0.5)
    words = [note, Progress(step=1), look, Progress(step=3), Progress(step=4)]
    assert worth_saying(words) == [note, look, Progress(step=4)]
    assert worth_saying([]) == []


@pytest.mark.parametrize(("method", "parties"), [("lora", 1), ("mobillm-full-width", 2)])
def test_a_job_asks_for_what_is_predicted_of_it(tmp_path, method, parties):
    lay_out(tmp_path, RunSpec(method=method, options={"server": "spawn"} if parties == 2 else {}))
    train, memory = Job(("train", str(tmp_path)), method), Job(("memory", str(tmp_path), "device"), method)
    assert places(train) == places(memory) == [tmp_path]
    need, alone = need_of(train, 1), need_of(memory, 2)
    assert parties * RUNTIME_BYTES < need.memory_bytes < parties * RUNTIME_BYTES + 2**28
    assert (need.cpus, need.gpus, alone.cpus) == (1, 0, 2)
    assert RUNTIME_BYTES < alone.memory_bytes < need.memory_bytes + (parties == 1)


def test_a_gpu_is_asked_for_where_cuda_is(tmp_path):
    lay_out(tmp_path, RunSpec(method="lora", accelerator="cuda"))
    assert need_of(Job(("train", str(tmp_path)), ""), 1).gpus == 1


@pytest.mark.parametrize("place", ["moon", "ray://", "ray://host", "ray:remote", "ray://ho st:1"])
def test_a_place_that_is_none_is_refused(place):
    with pytest.raises(BadInput, match="no such place"):
        runner_on(place, None, 1, "")


@pytest.mark.skipif(HERE, reason="ray is installed")
def test_without_ray_the_sentence_names_the_extra(tmp_path):
    with pytest.raises(KitError, match=r"Running on Ray needs ray, .* pip install 'mobillm-kit\[cluster\]'"):
        compare(tmp_path / "run", [tiny_spec(tmp_path, "probe")], measure=False, runner=runner_on("ray", None, 1, ""))


# ---------------------------------------------------------------------- two nodes


class Nodes:
    """A cluster of a head without work and nodes that do it, of processes of this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._memory = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        self._cluster = Cluster()
        head = self._cluster.add_node(num_cpus=0, memory=2**30, ray_client_server_port=free_port(), **self._memory)
        self.client = f"ray://127.0.0.1:{head._ray_params.ray_client_server_port}"
        self.nodes = [self.more() for _ in range(2)]

    def more(self, **environment: str):
        """One more node, with further environment variables."""
        more = {"env_vars": environment} if environment else {}
        return self._cluster.add_node(num_cpus=1, memory=3 * 2**30, **self._memory, **more)

    def remove(self, node) -> None:
        """As if somebody had pulled the plug."""
        self._cluster.remove_node(node, allow_graceful=False)

    def processes(self) -> list[psutil.Process]:
        """Workers of this kit, of any folder that a node has made."""
        found = psutil.process_iter(["cmdline"])
        return [process for process in found if "mobillm_kit.runs.worker" in (process.info["cmdline"] or [])]

    def shut(self) -> None:
        self._cluster.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def cluster(monkeypatch, tmp_path_factory):
    """Two nodes that can work, and the address of their head in the environment."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # a node finds no kit in the driver's folder
    nodes = Nodes()
    monkeypatch.setenv("RAY_ADDRESS", nodes._cluster.address)
    yield nodes
    nodes.shut()


def of_the_run(record: RunRecord) -> bytes:
    """What has to be equal: all of a record but clocks, resident memory and where it was made."""
    plain = msgspec.to_builtins(record)
    for name in ("seconds", "cpu_seconds", "provenance", "timeline"):
        plain.pop(name)
    plain["curve"] = [{**point, "seconds": 0} for point in plain["curve"]]
    plain["measured"] = [(party["party"], party["steps"], party["how"]) for party in plain["measured"]]
    return msgspec.json.encode(plain)


def wait_for(condition, seconds: float = MOST_S) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


@on_ray
def test_records_are_those_of_one_machine(tmp_path, cluster):
    methods = {"bag-of-words": {}, "probe": {}, "mobillm-ladder": {"server": "spawn", "codec": "int8", "cache": True}}
    small = {"steps": 4, "eval_every": 2, "limit_train": 48, "limit_dev": 24, "limit_test": 16, "accelerator": "cpu"}
    specs = [RunSpec(method=name, options=options, **small) for name, options in methods.items()]
    far = compare(tmp_path / "ray", specs, runner=runner_on("ray", None, 1, "mobillm compare"))
    near = compare(tmp_path / "here", specs, jobs=2, command="mobillm compare")
    assert [of_the_run(record) for record in far] == [of_the_run(record) for record in near]
    assert [len(record.measured) for record in far] == [0, 1, 2]
    names = [
        {str(path.relative_to(tmp_path / where)) for path in (tmp_path / where).rglob("*") if path.is_file()}
        for where in ("ray", "here")
    ]
    assert names[0] == names[1]
    for place in ("probe/seed0/checkpoint", "mobillm-ladder/seed0/side/model"):
        ours, theirs = (load_file(tmp_path / where / f"{place}.safetensors") for where in ("ray", "here"))
        assert all(ours[name].equal(theirs[name]) for name in theirs)


# ---------------------------------------------------------------------- a cluster of our own


@on_ray
def test_a_cluster_of_our_own_has_a_token_and_no_open_dashboard_and_ends_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    seen: dict[str, list] = {}

    def look(job: Job, progress: Progress) -> None:
        if progress.step and not seen:
            mine = [p for p in psutil.Process().children(recursive=True) if "ray" in " ".join(p.cmdline())]
            seen["processes"] = mine
            seen["modes"] = [p.environ().get("RAY_AUTH_MODE") for p in mine if "raylet" in p.name()]
            seen["tokens"] = [len(p.environ().get("RAY_AUTH_TOKEN", "")) for p in mine if "raylet" in p.name()]
            boards = [p for p in mine if "dashboard" in " ".join(p.cmdline())]
            seen["open"] = [
                c.laddr
                for p in boards
                for c in p.net_connections("tcp")
                if c.status == "LISTEN" and c.laddr.port in range(8265, 8300) and c.laddr.ip not in ("127.0.0.1", "::1")
            ]

    spec = tiny_spec(tmp_path, "probe", steps=200)
    compare(tmp_path / "run", [spec], measure=False, runner=runner_on("ray:local", None, 1, "", look))
    assert seen["modes"]
    assert set(seen["modes"]) == {"token"}
    assert min(seen["tokens"]) >= 32
    assert seen["open"] == []
    assert wait_for(lambda: not any(process.is_running() for process in seen["processes"]), 30)
