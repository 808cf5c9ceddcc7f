"""A record comes back equal, or is refused with a sentence; a file is whole or is the old one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_kit.errors import RecordError, SaveFailed
from mobillm_kit.files import write_bytes, write_with
from mobillm_kit.record import FORMAT, load_record, packaged_records
from tests.records import MIB, a_comparison, a_control, a_record

ROOT = Path(__file__).resolve().parent.parent

scalars = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans(), st.none())


def damaged(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "record.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_record_of_a_comparison_comes_back_equal(tmp_path):
    for record in a_comparison(seeds=(0, 1)):
        record.save(tmp_path / "record.json")
        assert load_record(tmp_path / "record.json") == record


@given(
    settings_=st.dictionaries(st.text(), scalars),
    scores=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    seconds=st.floats(0, 1e9),
    stopped=st.text(),
)
@settings(max_examples=60, deadline=None)
def test_any_setting_and_any_score_survive_json(tmp_path_factory, settings_, scores, seconds, stopped):
    finite = {k: v for k, v in settings_.items() if v not in (float("inf"), float("-inf"))}
    record = a_record(settings=finite, scores=scores, seconds=seconds, stopped=stopped)
    path = tmp_path_factory.getbasetemp() / "any.json"
    record.save(path)
    assert load_record(path) == record


def test_the_file_is_json_that_a_person_can_read(tmp_path):
    record = a_record("lora", 2)
    record.save(tmp_path / "record.json")
    text = (tmp_path / "record.json").read_text()
    assert json.loads(text)["scores"]["test_accuracy"] == record.scores["test_accuracy"]
    assert text.count("\n") > 100


def test_equal_records_are_equal_bytes(tmp_path):
    for name in "ab":
        a_record().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_record_cannot_be_changed():
    with pytest.raises(AttributeError, match="immutable"):
        a_record().seed = 1


def test_the_ledger_adds_up():
    counted = a_record("full").counted[0]
    parts = msgspec.structs.asdict(counted)
    del parts["party"]
    assert counted.total_bytes == sum(parts.values()) > 18 * MIB


def test_what_training_needs_is_the_growth_over_the_loaded_model_and_never_negative():
    measured = a_record("full").measured[0]
    assert measured.training_bytes == measured.peak_rss_bytes - measured.loaded_rss_bytes > 0
    shrunk = msgspec.structs.replace(measured, peak_rss_bytes=measured.loaded_rss_bytes - 5)
    assert shrunk.training_bytes == 0


def test_a_control_needs_no_memory_at_all(tmp_path):
    a_control("majority").save(tmp_path / "record.json")
    assert load_record(tmp_path / "record.json").counted == ()


@pytest.mark.parametrize("version", [0, FORMAT + 1])
def test_another_version_is_refused_whatever_else_it_holds(tmp_path, version):
    path = damaged(tmp_path, json.dumps({"format": version, "fields": "unknown to us"}))
    with pytest.raises(RecordError, match=rf"record.json: a record of format {version}.*reads format {FORMAT}"):
        load_record(path)


def test_a_file_cut_short_is_refused(tmp_path):
    a_record().save(tmp_path / "whole.json")
    whole = (tmp_path / "whole.json").read_bytes()
    with pytest.raises(RecordError, match="not a run record"):
        load_record(damaged(tmp_path, whole[: len(whole) // 2]))


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"format": "1"}', b"\xff\xfe\x00", "null"])
def test_what_is_no_record_is_refused(tmp_path, text):
    with pytest.raises(RecordError, match="not a run record"):
        load_record(damaged(tmp_path, text))


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", "seven"), ("status", "half"), ("curve", [{"step": 1}]), ("counted", [{"party": "moon"}])],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path, field, value):
    a_record().save(tmp_path / "record.json")
    content = json.loads((tmp_path / "record.json").read_text())
    content[field] = value
    with pytest.raises(RecordError, match=rf"damaged run record.*{field}"):
        load_record(damaged(tmp_path, json.dumps(content)))


def test_a_missing_field_is_named(tmp_path):
    a_record().save(tmp_path / "record.json")
    content = json.loads((tmp_path / "record.json").read_text())
    del content["backbone"]
    with pytest.raises(RecordError, match=r"damaged run record.*backbone"):
        load_record(damaged(tmp_path, json.dumps(content)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"nowhere.json: cannot be read \(No such file"):
        load_record(tmp_path / "nowhere.json")


def test_saving_makes_the_folder_and_leaves_no_scraps(tmp_path):
    path = tmp_path / "runs" / "new" / "record.json"
    a_record().save(path)
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_a_writer_that_fails_half_way_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "weights"
    write_bytes(path, b"old")

    def half(target: Path) -> None:
        target.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveFailed, match=r"weights: could not be written \(No space left on device\)"):
        write_with(path, half)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_a_folder_that_is_a_file_is_refused_with_a_sentence(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SaveFailed, match=r"record.json: could not be written"):
        a_record().save(tmp_path / "runs" / "record.json")


OVERFLOW = """
import sys
from pathlib import Path
from mobillm_kit.errors import SaveFailed
from mobillm_kit.record import load_record
from tests.records import a_comparison, a_record
folder = Path(sys.argv[1])
old = a_record("lora", 0)
old.save(folder / "record.json")
{limit}
too_long = a_record("lora", 1, stopped="x" * 500_000)
try:
    too_long.save(folder / "record.json")
except SaveFailed as error:
    assert "{reason}" in str(error), error
else:
    sys.exit("nothing was refused")
assert load_record(folder / "record.json") == old
assert [p.name for p in folder.iterdir()] == ["record.json"], list(folder.iterdir())
print("whole")
"""

FILE_SIZE_LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"


@pytest.mark.skipif(os.name != "posix", reason="a limit on file sizes belongs to POSIX")
def test_a_file_system_that_refuses_the_rest_leaves_the_old_record(tmp_path):
    code = OVERFLOW.format(limit=FILE_SIZE_LIMIT, reason="File too large")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout == "whole\n", done.stderr


def test_a_really_full_disk_leaves_the_old_record(tmp_path):
    code = OVERFLOW.format(limit="", reason="No space left on device")
    # a mount of its own: it is gone when the process is
    script = f'mount -t tmpfs -o size=256k full "{tmp_path}" || exit 77; exec "$0" -c "$1" "{tmp_path}"'
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("a small file system of its own needs Linux's unshare")
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", script, sys.executable, code],
        capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("mounting a small file system is not allowed here")
    assert done.stdout == "whole\n", done.stderr


def test_a_task_without_records_and_damaged_ones_are_named(monkeypatch, tmp_path):
    with pytest.raises(RecordError, match=r"reviews.records\.jsonl: no run records"):
        packaged_records("reviews")
    monkeypatch.setattr("mobillm_kit.record.data_folder", lambda _task: tmp_path)
    (tmp_path / "records.jsonl").write_bytes(b'{"format": 1}\n')
    with pytest.raises(RecordError, match=r"records\.jsonl: no run records \(Object missing required field"):
        packaged_records("turns")
