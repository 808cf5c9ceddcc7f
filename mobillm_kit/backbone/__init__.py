"""A frozen Hugging Face model, block by block.  Knows: models, token ids.  Knows nothing of: tasks, training."""
