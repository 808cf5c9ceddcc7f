"""A link between two machines: by arithmetic, and one that really holds bytes back.

Knows: bytes, rates, seconds.  Knows nothing of: messages, tensors, models.
"""
