"""A frozen Hugging Face model, block by block: whole in memory, read from its files, or in few bits.

Knows: models and token ids.  Knows nothing of: tasks, side networks, training.
"""
