"""A device without PyTorch: engines that run an exported backbone, and what makes bytes of its activations.

Knows: arrays, files, the channel.  Knows nothing of: torch, but where a backbone is exported.
"""
