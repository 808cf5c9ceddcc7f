"""The drawing at the top of README, once for light and once for dark pages: `python scripts/make_overview.py`.

The upper half says who does what in MobiLLM.  The lower half has the measured memory of one fresh process per way of
training OPT-1.3B; its figures are read from ``benchmarks/results/memory.jsonl`` and from nowhere else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "memory.jsonl"
OUT = ROOT / "docs" / "assets"
WIDTH, HEIGHT = 960, 492
LEFT, FULL = 336, 500  # where the bars begin, and how long the longest is


@dataclass(frozen=True)
class Look:
    """The colours of one drawing."""

    paper: str
    ink: str
    muted: str
    box: str
    device: str
    server: str
    other: str


LOOKS = {
    "light": Look("#ffffff", "#1f2328", "#59636e", "#f3f5f8", "#0072b2", "#8a5a00", "#7d8590"),
    "dark": Look("#0d1117", "#e6edf3", "#a3adb8", "#1a212b", "#58a6e8", "#e6a532", "#8b949e"),
}

BARS = (
    ("LoRA, by the library PEFT", "peft", False),
    ("LoRA, by this kit", "lora", False),
    ("LoRA with checkpointing", "exact", False),
    ("LoRA over streamed blocks, no server", "streamed", False),
    ("MobiLLM's device, streamed blocks", "device", True),
)
"""What the bar is called, the role of its record, and whether a server takes part."""


def peaks_mib() -> dict[str, int]:
    """Per role the peak of OPT-1.3B at 8 texts of 128 tokens in bfloat16, one batch at a time."""
    wanted = {"model": "opt-1.3b", "batch": 8, "length": 128, "weights": "bfloat16", "window": 1}
    found = {}
    for line in RECORDS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if wanted.items() <= record["case"].items():
            found[record["case"]["role"]] = round(record["peak_bytes"] / 2**20)
    return found


def text(
    x: float, y: float, words: str, fill: str, *, size: int = 15, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    shape = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"'
    return f"<text {shape}{weight}>{escape(words)}</text>"


def box(x: float, y: float, width: float, height: float, fill: str, line: str, thick: float = 1.5) -> str:
    shape = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"'
    return f'<rect {shape} fill="{fill}" stroke="{line}" stroke-width="{thick:g}"/>'


def arrow(path: str, color: str, *, dashed: bool = False) -> str:
    """A line that ends in a head; the head is the marker of its colour."""
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"{dashes} marker-end="url(#{color[1:]})"/>'


def head(color: str) -> str:
    shape = 'viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto"'
    return f'<marker id="{color[1:]}" {shape}><path d="M0 0L10 5L0 10z" fill="{color}"/></marker>'


def labelled(x: float, y: float, width: float, words: str, look: Look, line: str) -> list[str]:
    return [
        box(x, y, width, 40, look.paper, line),
        text(x + width / 2, y + 25, words, look.ink, size=14, anchor="middle"),
    ]


def parties(look: Look) -> list[str]:
    """Device, link and server: the blocks hand their activations down, the adapters take them."""
    parts = [box(12, 12, 446, 206, look.box, look.device, 2), box(596, 12, 352, 206, look.box, look.server, 2)]
    parts += [
        text(30, 40, "DEVICE", look.device, bold=True),
        text(106, 40, "has the texts, runs forward only", look.ink),
        text(614, 40, "SERVER", look.server, bold=True),
        text(692, 40, "has autograd, no texts", look.ink),
    ]
    parts += labelled(30, 62, 66, "texts", look, look.muted)
    for number, x in enumerate((122, 236, 350)):
        parts += labelled(x, 62, 90, ("block 1", "block 2", "block n")[number], look, look.device)
        parts.append(arrow(f"M{x + 45} 102V150", look.device))
        parts.append(arrow(f"M{x - 24} 82H{x - 3}", look.muted, dashed=number == 2))
    parts.append(text(30, 132, "backbone,", look.muted, size=13))
    parts.append(text(30, 148, "frozen", look.muted, size=13))
    parts += labelled(122, 153, 318, "codec: 1 to 32 bits a value", look, look.device)
    parts.append(arrow("M440 173H611", look.device))
    parts += [
        text(527, 158, "activations", look.ink, size=14, anchor="middle"),
        text(527, 197, "no gradient", look.muted, size=13, anchor="middle"),
        text(527, 213, "comes back", look.muted, size=13, anchor="middle"),
    ]
    parts += labelled(614, 153, 150, "adapters", look, look.server)
    parts += labelled(798, 153, 134, "loss", look, look.server)
    parts.append(arrow("M764 173H795", look.server))
    parts.append(arrow("M865 153V110H689V150", look.server))
    parts.append(text(777, 100, "backward, one step of AdamW", look.muted, size=13, anchor="middle"))
    return parts


def bars(look: Look) -> list[str]:
    peaks = peaks_mib()
    longest = max(peaks[role] for _, role, _ in BARS)
    title = "Memory of the device in MiB: OPT-1.3B, 8 texts of 128 tokens, bfloat16"
    parts = [
        text(12, 262, title, look.ink, bold=True),
        text(
            12,
            283,
            "Measured peak of one fresh process each, Python and torch included; shorter is better",
            look.muted,
            size=13,
        ),
    ]
    for number, (words, role, with_server) in enumerate(BARS):
        y, width = 300 + 38 * number, FULL * peaks[role] / longest
        color = look.device if with_server else look.other
        parts.append(text(LEFT - 12, y + 19, words, look.ink, anchor="end"))
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="27" rx="3" fill="{color}"/>')
        parts.append(text(LEFT + width + 10, y + 19, f"{peaks[role]:,}", look.ink, bold=with_server))
    return parts


def words() -> str:
    """What the drawing shows, for readers who do not see it."""
    peaks = peaks_mib()
    found = "; ".join(f"{name}: {peaks[role]:,}" for name, role, _ in BARS)
    return (
        "A device with the texts runs a frozen backbone forward and sends activations; a server without the texts "
        f"trains adapters on them; no gradient comes back. Measured memory of the device in MiB. {found}."
    )


def drawing(look: Look) -> str:
    parts = [
        f"<title>{escape(words())}</title>",
        "<defs>",
        *map(head, (look.device, look.server, look.muted)),
        "</defs>",
    ]
    parts += [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{look.paper}"/>', *parties(look), *bars(look)]
    fonts = "-apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif"
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{fonts}" role="img">'
    )
    return "\n".join([opening, *parts, "</svg>"]) + "\n"


def files() -> dict[Path, str]:
    return {OUT / f"overview-{name}.svg": drawing(look) for name, look in LOOKS.items()}


if __name__ == "__main__":
    for path, drawn in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(drawn, encoding="utf-8")
    print(words())
