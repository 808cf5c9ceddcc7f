"""A table says what the records say: no more, no less, with units."""

from __future__ import annotations

import csv as csv_module
import io
import re

import msgspec
import pytest

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import CONTROLS, LABELS
from mobillm_kit.record import MeasuredMemory, RunRecord
from mobillm_kit.show.tables import EMPTY, MEMORY, RESULTS, Row, cells, csv, markdown, rows
from tests.records import MIB, SKETCHES, a_comparison, a_control, a_record

SKETCHES_SHOWN = (LABELS["probe"], LABELS["mezo"])


def with_accuracy(*accuracies: float, method: str = "lora") -> list:
    return [a_record(method, seed, scores={"test_accuracy": a}) for seed, a in enumerate(accuracies)]


def named(method: str) -> RunRecord:
    return msgspec.structs.replace(a_record("full"), method=method)


def row_of(method: str, table: list[Row]) -> Row:
    return next(row for row in table if row.method == method)


def begun(reduction: int, **changes) -> RunRecord:
    record = a_record("mobillm-ladder")
    options = {"option.start": "backbone", "option.reduction": reduction}
    return msgspec.structs.replace(record, settings={**record.settings, **options}, **changes)


def test_a_side_network_that_begins_as_the_backbones_blocks_is_called_what_it_is():
    (copy,), (pruned,), (own,) = (rows([record]) for record in (begun(1), begun(2), a_record("mobillm-ladder")))
    assert copy.label == "MobiLLM, copy of the top blocks (ladder)"
    assert pruned.label == "MobiLLM, pruned copy of the top blocks (ladder)"
    assert own.label == LABELS["mobillm-ladder"]
    assert f"| {copy.label} |" in markdown([copy])


def test_a_table_says_what_is_trained_where_and_what_was_sent():
    names, lines = cells(rows([a_record("lora"), begun(1), a_control("majority")]), RESULTS)
    columns = [names.index(name) for name in ("Trainable parameters", "Trained on", "Sent, MB")]
    sent = begun(1).bytes_sent / 1e6
    assert [[line[column] for column in columns] for line in lines] == [
        ["65,536", "device", "0.0"],
        ["310,000", "server", f"{sent:,.1f}"],
        [EMPTY, EMPTY, EMPTY],
    ]


def test_mean_and_spread_by_hand():
    accuracy = rows(with_accuracy(0.8, 0.9, 1.0))[0].test_accuracy
    assert accuracy.mean == pytest.approx(0.9)
    assert accuracy.std == pytest.approx(0.1)
    assert accuracy.text(scale=100) == "90.0 ± 10.0"


def test_one_seed_has_no_spread():
    assert rows(with_accuracy(0.875))[0].test_accuracy.text(scale=100) == "87.5"


def test_the_order_is_the_table_of_methods_then_the_others_then_the_controls():
    records = [a_control("majority"), a_control("zero-shot"), named("mine")]
    records += [a_record("mobillm-full-width"), a_record("full")]
    table = rows(records)
    assert [row.method for row in table] == ["full", "mobillm-full-width", "mine", "zero-shot", "majority"]


def test_names_come_from_the_table_of_methods_and_else_are_the_methods_own():
    table = rows([a_record("full"), named("mine"), a_control("zero-shot")])
    assert [row.label for row in table] == ["Full fine-tuning", "mine", LABELS["zero-shot"]]


def test_controls_need_no_memory_no_bytes_and_no_time():
    row = rows([a_control("bag-of-words")])[0]
    assert row.control
    assert row.test_accuracy.mean == 0.706
    assert row.device_mib == row.server_mib == {}
    for needless in (row.sent_mb, row.seconds, row.forwards):
        assert needless is None


def test_every_control_stands_in_the_markdown_with_dashes():
    text = markdown(rows(a_comparison()))
    for name in CONTROLS:
        lines = [line for line in text.splitlines() if line.startswith(f"| {LABELS[name]} |")]
        assert len(lines) == 2
        assert all(EMPTY in line for line in lines)


def test_the_categories_add_up_to_the_total():
    for row in rows(a_comparison()):
        if not row.control:
            parts = dict(row.device_mib)
            total = parts.pop("total")
            assert list(parts) == ["weights", "gradients", "optimizer", "saved", "messages"]
            assert total == pytest.approx(sum(parts.values()))


def test_units_by_hand():
    record = a_record("mobillm-full-width", bytes_sent=2_500_000)
    row = rows([record])[0]
    assert row.sent_mb == 2.5
    assert row.device_mib["weights"] == record.counted[0].weights_bytes / MIB == 18


def test_device_and_server_stand_apart():
    row = row_of("mobillm-full-width", rows(a_comparison()))
    record = a_record("mobillm-full-width")
    assert row.device_mib["total"] == record.counted[0].total_bytes / MIB
    assert row.server_mib["total"] == record.counted[1].total_bytes / MIB
    assert row.device_measured_mib.mean != row.server_measured_mib.mean
    assert row_of("lora", rows(a_comparison())).server_mib == {}


def test_a_process_that_held_both_parties_is_credited_to_neither():
    record = a_record("mobillm-full-width")
    both = msgspec.structs.replace(record.measured[0], party="both")
    assert isinstance(both, MeasuredMemory)
    row = rows([msgspec.structs.replace(record, measured=(both,))])[0]
    assert row.device_measured_mib is None
    assert row.server_measured_mib is None


def test_interrupted_runs_are_named_and_not_averaged():
    runs = [
        *with_accuracy(0.8, 0.9),
        a_record("lora", 2, status="interrupted", scores={"test_accuracy": 0.1}),
    ]
    row = rows(runs)[0]
    assert (row.seeds, row.interrupted) == (2, 1)
    assert row.test_accuracy.mean == pytest.approx(0.85)
    assert "LoRA (1 interrupted)" in markdown([row])


def test_a_method_that_was_only_interrupted_still_has_a_row():
    row = rows([a_record("lora", status="interrupted", scores={})])[0]
    assert row.test_accuracy is None
    assert "| LoRA (1 interrupted) | – | – | 0 |" in markdown([row, *rows([a_record("full")])])


def test_a_little_is_not_called_nothing():
    tables = markdown(rows([a_record("probe"), a_record("mezo")]))
    probe, mezo = (next(x for x in tables.splitlines()[5:] if x.startswith(f"| {m}")) for m in SKETCHES_SHOWN)
    assert probe.split(" | ")[2:4] == ["< 0.1", "< 0.1"]
    assert mezo.split(" | ")[2:4] == ["0.0", "0.0"]


def test_a_metric_other_than_accuracy_gets_a_column_of_its_own():
    task = msgspec.structs.replace(a_record().task, metric="matthews")
    row = rows([a_record("lora", task=task, scores={"test_accuracy": 0.8, "test_matthews": 0.456})])[0]
    assert "matthews 45.6" in markdown([row])
    assert "metric" not in markdown(rows([a_record("lora")]))


def test_markdown_is_two_rectangular_tables():
    blocks = markdown(rows(a_comparison())).strip().split("\n\n")
    assert len(blocks) == 2
    for block in blocks:
        lines = block.splitlines()
        assert len(lines) == 2 + len(SKETCHES) + len(CONTROLS)
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_a_bar_in_a_name_does_not_break_the_table():
    text = markdown(rows([named("a|b")]))
    assert r"a\|b" in text


def test_columns_that_nobody_fills_are_left_out():
    heads, _ = cells(rows([a_record("lora", scores={"test_accuracy": 0.9})]), RESULTS)
    assert "Handwritten, %" not in heads
    heads, _ = cells(rows([a_record("lora")]), MEMORY)
    assert not any("Server" in head for head in heads)


def test_csv_reads_back_in_full_precision():
    table = rows(a_comparison())
    read = list(csv_module.DictReader(io.StringIO(csv(table))))
    assert [line["method"] for line in read] == [row.method for row in table]
    for line, row in zip(read, table, strict=True):
        assert float(line["test_accuracy_mean"]) == row.test_accuracy.mean
        assert line["device_total_mib"] == ("" if row.control else repr(row.device_mib["total"]))


def test_csv_has_one_column_per_quantity_and_says_its_unit():
    heads = csv(rows([a_record("full")])).splitlines()[0].split(",")
    assert len(set(heads)) == len(heads)
    assert {"sent_mb", "device_total_mib", "seconds_mean", "test_accuracy_std"} <= set(heads)


def test_nothing_to_compare_is_refused():
    with pytest.raises(BadInput, match="no records to compare"):
        rows([])


@pytest.mark.parametrize("field", ["task", "backbone"])
def test_two_tasks_or_two_backbones_are_not_one_comparison(field):
    other = msgspec.structs.replace(getattr(a_record(), field), name="other")
    with pytest.raises(BadInput, match=f"several {field}s: other, "):
        rows([a_record("full"), a_record("lora", **{field: other})])


def test_all_methods_of_a_comparison_are_there():
    assert {row.method for row in rows(a_comparison())} == {*SKETCHES, *CONTROLS}
