"""Parallel adapters beside the backbone: from the activations of its layers to logits.

Knows: side networks, heads, their files.  Knows nothing of: training, sockets, texts.
"""
