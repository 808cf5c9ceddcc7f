"""A slider over codecs and groups: one token's channels before and after, and what that costs.

A picture and a line of text that are replaced when a slider moves; nothing is drawn inside an Output widget, so every
front end shows it.

Knows: codecs and their figure.  Knows nothing of: models.

Taught in: notebooks/07_quantized_activations.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
from torch import Tensor

from mobillm_kit.plots_codec import bits_per_value, one_token, relative_error
from mobillm_kit.quant import GROUPS, codec


class CodecPanel(widgets.VBox):
    """One token under a codec, and the error over all tokens.

    Args:
        x: activations (N, d) of one layer.
        token: activations (d,) of the token that is drawn.
        names: codecs from few bits to many.
        groups: values per scale; 0 is one scale per token.
    """

    def __init__(
        self,
        x: Tensor,
        token: Tensor,
        names: Sequence[str] = ("sign", "int2", "int4", "nf4", "int8", "fp16"),
        groups: Sequence[int] = tuple(reversed(GROUPS)),
    ) -> None:
        self._x, self._token = x, token
        self.codec = widgets.SelectionSlider(
            options=list(names), value="int4", description="codec", continuous_update=False
        )
        labels = [(str(group) if group else "a token", group) for group in groups]
        self.group = widgets.SelectionSlider(options=labels, value=0, description="scale per", continuous_update=False)
        self.picture = widgets.Image(format="png")
        self.text = widgets.HTML()
        super().__init__([widgets.HBox([self.codec, self.group]), self.picture, self.text])
        for control in (self.codec, self.group):
            control.observe(self._redraw, names="value")
        self._redraw()

    def _redraw(self, _change: object = None) -> None:
        coder = codec(self.codec.value, self.group.value)
        self.picture.value, size = one_token(self._token, coder)._repr_png_()
        self.picture.width = str(size["width"])
        self.text.value = (
            f"{coder}: {bits_per_value(coder, self._x.shape[-1]):.2f} bits per value, "
            f"relative error over all {len(self._x)} tokens {relative_error(coder, self._x):.3f}"
        )
