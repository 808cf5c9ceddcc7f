"""Adaptive bit width: the widest codec with which the link is not the slowest stage.

    send_s(codec) = bytes(codec) / rate         rate = bytes / seconds, averaged over the last sends
    chosen        = the widest codec with send_s <= max(forward_s + encode_s, decode_s + train_s)

A choice, once made for a step, stays: a batch that has to be made again is made with the same codec, so that a
disturbed run ends in the same bytes as its own undisturbed repetition.

Knows: durations and sizes.  Knows nothing of: sockets, models.
Taught in: notebooks/08_device_and_server.ipynb
"""

from collections.abc import Callable, Sequence

from mobillm_kit.quant import Codec, codec
from mobillm_kit.record import Stage

LADDER = ("fp16", "int8", "int4", "int2")
"""From wide to narrow."""

NEWEST_SHARE = 0.25
"""Weight of the newest observation in a running average."""


class BitWidthController:
    """Chooses a codec of ``names``, from wide to narrow, per step; a stage that has not run has no ``average_s``.

    Of a single name there is nothing to choose, and no choice is told.
    """

    def __init__(
        self, average_s: Callable[[Stage], float | None], *, group: int = 64, names: Sequence[str] = LADDER
    ) -> None:
        self.choices: dict[int, str] = {}
        self._average_s = average_s
        self._average_values = 0.0
        self._average_bytes = 0.0
        self._coders = {name: codec(name, group) for name in names}

    def codec(self, step: int) -> Codec:
        """The codec of a step; the same one whenever it is asked for again."""
        if step not in self.choices:
            self.choices[step] = self._choose()
        return self._coders[self.choices[step]]

    @property
    def chosen(self) -> tuple[str, ...]:
        """The codec of each step, where there was a choice."""
        return tuple(name for _, name in sorted(self.choices.items())) if len(self._coders) > 1 else ()

    def made(self, n_values: int, n_bytes: int) -> None:
        """A batch of so many activations was encoded into so many bytes."""
        new = NEWEST_SHARE if self._average_bytes else 1.0
        self._average_values += new * (n_values - self._average_values)
        self._average_bytes += new * (n_bytes - self._average_bytes)

    def _choose(self) -> str:
        send_s, narrowest = self._average_s("send"), list(self._coders)[-1]
        if not send_s or not self._average_bytes:
            return narrowest  # nothing is known yet
        rate = self._average_bytes / send_s
        device_s = (self._average_s("forward") or 0.0) + (self._average_s("encode") or 0.0)
        server_s = (self._average_s("decode") or 0.0) + (self._average_s("train") or 0.0)
        for name, coder in self._coders.items():
            if self._average_values * bytes_per_value(coder) / rate <= max(device_s, server_s):
                return name
        return narrowest


def bytes_per_value(coder: Codec, values: int = 4096) -> float:
    """Of a long row: codes and scales."""
    return coder.wire_bytes((1, values)) / values
