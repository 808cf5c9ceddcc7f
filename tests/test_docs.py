"""The pages of docs/ as a site: built without a warning where mkdocs is, and the glossary in order everywhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mobillm_kit
from mobillm_kit.methods import LABELS
from mobillm_kit.quant.books import CODECS
from scripts import docs_hooks

ROOT = Path(__file__).parent.parent
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^- \*\*(.+?)\*\*: (.+)$", GLOSSARY, re.MULTILINE))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    return folder


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    for path in site.glob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\">\s]+)", path.read_text("utf-8"))
        assert not loaded, path.name


def test_the_page_of_the_api_has_every_public_name(site):
    html = (site / "api.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'<h3 id="[\w.]*?(\w+)"', html))
    assert set(mobillm_kit.__all__) - {"__version__"} <= shown
    assert not re.search(r":(?:func|class|data):<code>", html)


def test_a_name_that_is_also_a_module_is_looked_up_as_the_function():
    assert docs_hooks.path_of("codec", "mobillm_kit.quant") == "mobillm_kit.quant.codec.codec"
    assert docs_hooks.path_of("Link", "mobillm_kit.link.rates") == "mobillm_kit.link.rates.Link"


def test_the_glossary_is_in_order_and_every_entry_short():
    assert len(ENTRIES) == GLOSSARY.count("\n- ") > 100
    assert list(ENTRIES) == sorted(ENTRIES, key=str.lower)
    for term, words in ENTRIES.items():
        assert len(re.findall(r"[.!?](?=\s|$)", words)) in (1, 2), term


@pytest.mark.parametrize(
    "name", [*(LABELS[m] for m in ("full", "lora", "lora-fa", "bitfit", "mezo", "p-rge", "probe")), *CODECS]
)
def test_the_glossary_has_every_method_and_codec(name):
    assert re.search(rf"\b{re.escape(name)}\b", GLOSSARY, re.IGNORECASE)
