"""The server: uploads in, steps of the side network's training out.

Knows: side networks, messages, files.  Knows nothing of: the backbone's weights, texts.
"""
