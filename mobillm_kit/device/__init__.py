"""The device: the frozen backbone, its batches, and the way to the server.

Knows: backbones, batches, messages.  Knows nothing of: how the server trains.
"""
