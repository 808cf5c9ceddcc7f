"""A link, computed or really slow.  Knows: bytes, rates, seconds.  Knows nothing of: messages, tensors, models."""
