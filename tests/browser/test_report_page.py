"""The report page of a comparison: light and dark, on a wide window and on a phone's."""

from __future__ import annotations

import pytest

from mobillm_kit.record import packaged_records
from mobillm_kit.show.report import write_report
from tests.browser.conftest import picture, violations

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, packaged_records("turns"))
    return (folder / "index.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_it_fits_and_can_be_read(address, open_page, scheme, width):
    page = open_page(address, width=width, scheme=scheme)
    picture(page, f"report-{scheme}-{width}")
    assert page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth") <= 0
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert violations(page) == []
