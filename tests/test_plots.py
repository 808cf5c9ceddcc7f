"""Figures show what the records say, can be read by everybody, and leave nothing behind."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from mobillm_kit.errors import BadInput
from mobillm_kit.memory.live_tensors import Alive
from mobillm_kit.memory.prediction import MemoryNeed
from mobillm_kit.methods import CONTROLS, LABELS
from mobillm_kit.record import CountedMemory
from mobillm_kit.show import chart, plots_memory, plots_runs
from mobillm_kit.show.chart import Chart, spread_out
from mobillm_kit.show.plots_runs import Point, pareto_front
from tests.records import MIB, SKETCHES, a_comparison, a_control, a_record

ROOT = Path(__file__).resolve().parent.parent
CLOCKS = ("step", "forwards", "seconds", "bytes")
DRAWN = {
    "device_memory": lambda records: plots_memory.device_memory(records),
    **{f"convergence_{x}": (lambda records, x=x: plots_runs.convergence(records, x)) for x in CLOCKS},
    **{f"pareto_{m}": (lambda records, m=m: plots_runs.pareto(records, m)) for m in ("counted", "measured")},
}
ONE_OF_EACH = ("device_memory", "convergence_seconds", "pareto_counted")
WITH_ACCURACY = [name for name in DRAWN if name != "device_memory"]

records = a_comparison()


@cache
def drawn(name: str) -> Chart:
    """The figure of the whole comparison; drawn once, since nobody here changes it."""
    return DRAWN[name](records)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def boxes(figure: Figure, among: list[str]) -> dict[str, mpl.transforms.Bbox]:
    renderer = figure.canvas.get_renderer()
    found = [text for text in figure.axes[0].texts if any(text.get_text().startswith(name) for name in among)]
    return {text.get_text(): text.get_window_extent(renderer) for text in found}


def overlaps(a: mpl.transforms.Bbox, b: mpl.transforms.Bbox) -> bool:
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5


def contrast(a: str, b: str) -> float:
    """WCAG's ratio of relative luminances."""

    def luminance(color: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """PNG and SVG of one figure of each kind."""
    folder = tmp_path_factory.mktemp("figures")
    return {name: save(drawn(name), folder / name) for name in ONE_OF_EACH}


def save(shown: chart.Chart, place: Path) -> tuple[Path, Path]:
    place.with_suffix(".png").write_bytes(shown.png())
    place.with_suffix(".svg").write_text(shown.svg())
    return place.with_suffix(".png"), place.with_suffix(".svg")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_same_records_give_the_same_bytes(name, saved):
    again = DRAWN[name](list(records))
    assert [file.read_bytes() for file in saved[name]] == [again.png(), again.svg().encode()]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_users_own_style_neither_changes_a_figure_nor_is_changed(name, saved):
    ours = saved[name][1].read_text()
    mine = {"font.size": 30, "lines.linewidth": 9, "axes.grid": True, "text.color": "red", "figure.dpi": 40}
    with mpl.rc_context(mine):
        before = dict(mpl.rcParams)
        figure = DRAWN[name](records)
        assert dict(mpl.rcParams) == before
    assert figure.svg() == ours


def test_no_figure_is_left_with_pyplot():
    import matplotlib.pyplot as plt

    for name in DRAWN:
        drawn(name)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", WITH_ACCURACY)
def test_every_control_stands_in_every_figure_of_accuracy(name):
    shown = texts(drawn(name))
    for control in CONTROLS:
        assert any(text.startswith(LABELS[control]) for text in shown)


@pytest.mark.parametrize("name", DRAWN)
def test_axes_have_units_and_a_title_in_words(name):
    figure = drawn(name)
    axes = figure.axes[0]
    assert re.search(r"MiB|%|steps|samples|seconds|MB", axes.get_xlabel())
    if name != "device_memory":
        assert axes.get_ylabel().endswith("%")
    title = next(text.get_text() for text in axes.texts if text.get_fontweight() == "bold")
    assert len(title.split()) >= 5


@pytest.mark.parametrize("name", DRAWN)
def test_every_method_that_belongs_in_a_figure_is_named_in_it(name):
    shown = texts(drawn(name))
    methods = ("mobillm-full-width", "mobillm-ladder") if name == "convergence_bytes" else SKETCHES
    for method in methods:
        assert any(text.startswith(LABELS[method]) for text in shown)


def test_bars_are_as_long_as_the_ledger_says():
    figure = plots_memory.device_memory([a_record("full"), a_record("lora")])
    for place, method in enumerate(("full", "lora")):
        bars = [bar for bar in figure.axes[0].patches if bar.get_y() < place < bar.get_y() + bar.get_height()]
        counted = a_record(method).counted[0]
        assert sum(bar.get_width() for bar in bars) == pytest.approx(counted.total_bytes / MIB)
        assert bars[0].get_width() == counted.weights_bytes / MIB


def test_the_server_stands_apart_and_hatched():
    figure = plots_memory.device_memory([a_record("full"), a_record("mobillm-full-width")])
    axes = figure.axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["Full fine-tuning", "MobiLLM, full width, device", "MobiLLM, full width, server"]
    middles = axes.get_yticks()
    assert middles[2] - middles[1] > middles[1] - middles[0]
    hatched = {bar.get_y() > middles[1] + 0.4 for bar in axes.patches if bar.get_hatch()}
    assert hatched == {True}


def test_the_diamond_stands_where_the_weights_and_the_measured_growth_end():
    record = a_record("lora")
    axes = plots_memory.device_memory([record]).axes[0]
    diamond = next(line for line in axes.lines if line.get_marker() == "D")
    expected = (record.counted[0].weights_bytes + record.measured[0].training_bytes) / MIB
    assert diamond.get_xdata()[0] == pytest.approx(expected)


def test_a_curve_is_the_mean_of_the_seeds_and_its_band_their_range():
    runs = [a_record("lora", seed) for seed in range(3)]
    axes = plots_runs.convergence(runs, "step").axes[0]
    values = np.array([[100 * point.dev_accuracy for point in run.curve] for run in runs])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), values.mean(0))
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [point.step for point in runs[0].curve])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(values.max())
    assert band.min() == pytest.approx(values.min())


def test_one_text_of_a_hundred_does_not_fill_the_axis():
    record = a_record("mezo")
    level = [msgspec.structs.replace(point, dev_accuracy=0.6 + 0.01 * (n % 2)) for n, point in enumerate(record.curve)]
    low, high = plots_runs.convergence([msgspec.structs.replace(record, curve=tuple(level))]).axes[0].get_ylim()
    assert low < 60 < 61 < high
    assert high - low >= 10


def test_seeds_with_different_clocks_are_averaged_step_by_step():
    runs = [a_record("lora", seed) for seed in range(3)]
    axes = plots_runs.convergence(runs, "seconds").axes[0]
    seconds = np.array([[point.seconds for point in run.curve] for run in runs])
    np.testing.assert_allclose(axes.lines[0].get_xdata(), seconds.mean(0))


def test_a_seed_that_stopped_early_does_not_bend_the_mean():
    whole, short = a_record("lora", 0), a_record("lora", 1)
    short = msgspec.structs.replace(short, curve=short.curve[:5])
    axes = plots_runs.convergence([whole, short], "step").axes[0]
    assert len(axes.lines[0].get_xdata()) == 5


def test_traffic_is_in_megabytes():
    axes = plots_runs.convergence([a_record("mobillm-full-width")], "bytes").axes[0]
    assert max(axes.lines[0].get_xdata()) == pytest.approx(a_record("mobillm-full-width").bytes_sent / 1e6)


def test_who_sends_nothing_is_a_level_beside_those_who_send():
    net, full = a_record("mobillm-full-width"), a_record("full")
    figure = plots_runs.convergence([net, full, a_control("zero-shot")], "bytes")
    end = 100 * full.curve[-1].dev_accuracy
    levels = [line for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1]
    assert any(line.get_ydata()[0] == pytest.approx(end) for line in levels)
    assert f"Full fine-tuning {end:.1f}" in texts(figure)
    assert f"Full fine-tuning, which sends nothing, reaches {end:.1f} %" in figure.alt


def test_the_figure_of_traffic_says_how_much_less_the_thriftiest_sends():
    thrifty = a_record("mobillm-full-width")
    curve = tuple(msgspec.structs.replace(point, bytes_sent=37 * point.bytes_sent) for point in thrifty.curve)
    lavish = msgspec.structs.replace(a_record("mobillm-ladder"), curve=curve)
    said = "MobiLLM, full width sends 37 times less than MobiLLM, ladder"
    together = plots_runs.convergence([thrifty, lavish], "bytes")
    assert said in together.alt
    assert any(text.endswith(said) for text in texts(together))
    assert "times less" not in plots_runs.convergence([thrifty], "bytes").alt
    assert "times less" not in plots_runs.convergence([thrifty, lavish], "step").alt
    begun = msgspec.structs.replace(thrifty, curve=thrifty.curve[:1])  # beside a seed that looked nowhere else
    assert (
        "times less"
        not in plots_runs.convergence([thrifty, msgspec.structs.replace(begun, seed=1), lavish], "bytes").alt
    )


def test_points_stand_at_mean_accuracy_and_memory():
    runs = [a_record("lora", seed) for seed in range(3)]
    axes = plots_runs.pareto([*runs, a_control("zero-shot")], "counted").axes[0]
    x, y = axes.collections[0].get_offsets()[0]
    assert x == pytest.approx(runs[0].counted[0].total_bytes / MIB)
    assert y == pytest.approx(100 * np.mean([run.scores["test_accuracy"] for run in runs]))


def test_the_axis_says_which_memory_it_is():
    assert "counted" in drawn("pareto_counted").axes[0].get_xlabel()
    assert "measured" in drawn("pareto_measured").axes[0].get_xlabel()


def test_interrupted_runs_are_in_no_figure():
    half = a_record("full", status="interrupted")
    for name, draw in DRAWN.items():
        shown = texts(draw([half, a_record("mobillm-full-width"), a_control("zero-shot")]))
        assert not any("Full" in text for text in shown), name


@pytest.mark.parametrize("seed", range(4))
def test_labels_of_points_overlap_neither_each_other_nor_leave_the_page(seed):
    noise = np.random.default_rng(seed)
    crowd = []
    for method in SKETCHES:
        record = a_record(method)
        shift = int(noise.uniform(0, 30) * MIB)
        counted = tuple(msgspec.structs.replace(c, saved_activations_bytes=shift) for c in record.counted)
        scores = {"test_accuracy": float(noise.uniform(0.8, 0.99))}
        crowd.append(msgspec.structs.replace(record, counted=counted, scores=scores))
    figure = plots_runs.pareto(crowd, "counted")
    found = list(boxes(figure, [LABELS[method] for method in SKETCHES]).values())
    assert len(found) == len(SKETCHES)
    assert not any(overlaps(a, b) for i, a in enumerate(found) for b in found[:i])
    frame = figure.bbox
    assert all(b.x0 >= frame.x0 and b.x1 <= frame.x1 and b.y0 >= 0 and b.y1 <= frame.y1 for b in found)


@pytest.mark.parametrize("name", WITH_ACCURACY)
def test_labels_at_the_right_do_not_overlap(name):
    found = list(boxes(drawn(name), list(LABELS.values())).values())
    assert not any(overlaps(a, b) for i, a in enumerate(found) for b in found[:i])


@given(st.lists(st.floats(0, 100), max_size=12), st.floats(0.1, 5))
def test_places_keep_order_and_distance(wanted, gap):
    wanted = sorted(wanted)
    places = spread_out(wanted, gap, 0, 100)
    assert len(places) == len(wanted)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(places))
    if places:
        assert places[0] >= -1e-9
        assert places[-1] <= 100 + 1e-9


def test_places_that_are_free_are_kept():
    assert spread_out([10, 20, 30], 5, 0, 100) == [10, 20, 30]


def test_equal_wishes_are_spread_evenly_around_them():
    assert spread_out([50, 50, 50], 4, 0, 100) == pytest.approx([46, 50, 54])


def test_places_at_the_edge_are_moved_inside():
    assert spread_out([99, 100], 4, 0, 100) == pytest.approx([96, 100])


values = st.tuples(st.integers(1, 8), st.integers(1, 8))


@given(st.lists(values, min_size=1, max_size=10, unique=True))
@settings(max_examples=200)
def test_the_front_is_what_nothing_else_beats(pairs):
    points = [Point(str(i), i, m, a, a, a) for i, (m, a) in enumerate(pairs)]

    def beaten(p: Point) -> bool:
        return any(q is not p and q.memory_mib <= p.memory_mib and q.accuracy >= p.accuracy for q in points)

    assert pareto_front(points) == sorted((p for p in points if not beaten(p)), key=lambda p: p.memory_mib)


def test_no_two_methods_look_alike():
    looks = [chart.method_look(place) for place in range(30)]
    assert len(set(looks)) == 30
    ours = sum(name not in CONTROLS for name in LABELS)
    assert len({color for color, *_ in looks[:ours]}) == ours


def test_a_method_keeps_its_look_when_others_are_left_out():
    alone = plots_runs.convergence([a_record("mobillm-full-width")], "step").axes[0].lines[0]
    both = plots_runs.convergence([a_record("full"), a_record("mobillm-full-width")], "step").axes[0].lines
    assert to_hex(both[1].get_color()) == to_hex(alone.get_color())
    assert both[1].get_marker() == alone.get_marker()
    assert to_hex(both[0].get_color()) != to_hex(both[1].get_color())


def test_what_memory_is_made_of_has_no_colour_of_a_method():
    assert not {color for _, color in plots_memory.PARTS.values()} & set(chart.COLORS)


def test_a_method_has_one_colour_in_every_figure():
    need = MemoryNeed("device", Alive(weights=1), partial(CountedMemory, party="device", weights_bytes=1))
    curves = {LABELS[name]: [(1, need), (2, need)] for name in ("lora", "full")}
    growth = {line.get_color() for line in plots_memory.memory_growth(curves, "tokens").axes[0].lines}
    accuracy = {plots_runs.convergence([a_record(n)], "step").axes[0].lines[0].get_color() for n in ("lora", "full")}
    assert {to_hex(color) for color in growth} == {to_hex(color) for color in accuracy}


@pytest.mark.parametrize("ground", ["#ffffff", "#161a1f"])
def test_every_colour_of_the_data_stands_on_light_and_on_dark(ground):
    for color in [*chart.COLORS, *(color for _, color in plots_memory.PARTS.values())]:
        assert contrast(color, ground) >= 2.5, color


def test_letters_are_easy_to_read():
    assert contrast(chart.INK, chart.PAPER) >= 7
    assert contrast(chart.MUTED, chart.PAPER) >= 4.5


def test_files_carry_no_date_and_no_program(saved):
    png, vector = saved["pareto_counted"]
    assert [path.name for path in (png, vector)] == ["pareto_counted.png", "pareto_counted.svg"]
    assert not re.search(rb"Matplotlib|20\d\d-\d\d-\d\d", png.read_bytes()[:300])
    assert not re.search(r"<dc:date>|<dc:creator>", vector.read_text())


def test_png_has_150_dots_per_inch(saved):
    raw = saved["pareto_counted"][0].read_bytes()
    at = raw.index(b"pHYs") + 4
    assert struct.unpack(">I", raw[at : at + 4])[0] == round(150 / 0.0254)


def test_a_notebook_shows_what_a_cell_returns():
    png, size = drawn("pareto_counted")._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert 700 < size["width"] < 1000


def test_alt_texts_say_the_numbers():
    runs = [a_record("full"), a_record("mobillm-full-width"), a_control("zero-shot")]
    assert plots_memory.device_memory(runs).alt == (
        "Stacked bars of the memory counted on the device for 2 methods: "
        "from 22.2 MiB (MobiLLM, full width, device) to 132 MiB (Full fine-tuning)."
    )
    end = 100 * a_record("full").curve[-1].dev_accuracy
    assert f"{end:.1f} % (Full fine-tuning)" in plots_runs.convergence(runs, "step").alt
    accuracy = 100 * a_record("mobillm-full-width").scores["test_accuracy"]
    assert f"MobiLLM, full width (22 MiB, {accuracy:.1f} %)" in plots_runs.pareto(runs, "counted").alt


def test_one_method_of_one_seed_is_enough():
    for draw in DRAWN.values():
        assert "mean of" not in " ".join(texts(draw([a_record("mobillm-full-width")])))


def named(method: str):
    return msgspec.structs.replace(a_record("full"), method=method)


def test_a_name_with_signs_of_formulas_is_written_as_it_is():
    shown = texts(plots_runs.pareto([named("a $1 b_2$ <i>")]))
    assert "a $1 b_2$ <i>" in shown
    assert plots_runs.pareto([named("$\\frac$")]).svg()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots_runs.convergence(records, "epochs"), "'epochs' is not one of step, forwards, seconds, bytes"),
        (lambda: plots_runs.pareto(records, "guessed"), "'guessed' is neither 'counted' nor 'measured'"),
        (lambda: plots_memory.device_memory([]), "no records"),
        (lambda: plots_memory.device_memory([a_control("majority")]), "No finished record has counted memory"),
        (lambda: plots_runs.convergence([a_control("majority")]), "No finished record has a curve"),
        (lambda: plots_runs.convergence([a_record("full")], "bytes"), "No finished record has sent a byte"),
        (lambda: plots_runs.pareto([a_record("full", scores={})]), "test accuracy and counted memory"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_sentence(draw, message):
    with pytest.raises(BadInput, match=message):
        draw()


def test_a_missing_library_is_named_with_its_remedy():
    code = "import sys; sys.modules['seaborn'] = None\nimport mobillm_kit.show.plots_runs"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert "MissingExtra: Figures need seaborn" in done.stderr
    assert "mobillm-kit[lab]" in done.stderr
