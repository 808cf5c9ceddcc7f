"""Numbers that several rooms share.

Knows: units.  Knows nothing of: tensors, files, models.
"""

from __future__ import annotations

MIB = 2**20
GIB = 2**30

FLOAT_BYTES = 4
"""Of one float32."""
