"""The wire: messages, frames, sockets, keys.  Knows: bytes.  Knows nothing of: what tensors mean, training."""
