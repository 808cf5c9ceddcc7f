"""Where the packaged data lies: the pocket backbone and the review task.

A wheel carries it inside the package (``mobillm_kit/_data/``), a checkout beside the package (``data/``), so
a notebook or a script finds it from any working directory.

Knows: folders.  Knows nothing of: what lies in them.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from pathlib import Path

from mobillm_kit.errors import KitError

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """The folder of one packaged resource.

    Args:
        name: ``"pocket"`` (the pretrained pocket backbone) or ``"reviews"`` (the task beside it).

    Returns:
        An existing folder.

    Raises:
        KitError: the folder lies neither in the package nor beside it.
    """
    places = (_PACKAGE / "_data" / name, _PACKAGE.parent / "data" / name)
    for place in places:
        if place.is_dir():
            return place
    raise KitError(
        f"The packaged data '{name}' is missing: looked in {places[0]} and {places[1]}.",
        "Install mobillm-kit again, or work in a complete checkout of the project.",
    )
