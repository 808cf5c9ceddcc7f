"""Parallel adapters: activations to logits.  Knows: side networks, files.  Knows nothing of: training, sockets."""
