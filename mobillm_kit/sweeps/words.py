"""``--lr 1e-6,1e-5`` on a command line that begins with ``sweep``, as ``--grid lr=1e-6,1e-5``.

Knows: words.  Knows nothing of: methods, their options, runs.
"""

from collections.abc import Collection, Sequence

from mobillm_kit.texts.batches import FitSettings

SETTINGS = (*FitSettings.__dataclass_fields__, "preset", "max_length", "limit_train", "dtype", "weights")
"""Settings of a run that may have several values; what is an option of the method alone may anyway."""


def spelled(arguments: Sequence[str], fields: Collection[str]) -> list[str]:
    """The words with every axis in its long spelling: a name that is none of the command's ``fields``, or a setting
    of :data:`SETTINGS` with more than one value."""
    words = list(arguments)
    if words[:1] != ["sweep"]:
        return words
    done: list[str] = []
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        value = value if equals else words[0] if words else ""
        if word.startswith("--") and not value.startswith("--") and _is_axis(name.replace("-", "_"), value, fields):
            done += ["--grid", f"{name.replace('-', '_')}={value}"]
            words = words if equals else words[1:]
        else:
            done.append(word)
    return done


def _is_axis(name: str, value: str, fields: Collection[str]) -> bool:
    switched = name.removeprefix("no_")  # of a field that is true or false; --help
    if name in fields or switched in fields or name in ("help", "labels"):
        return name in (*SETTINGS, "codec") and "," in value
    return bool(value)
