"""Tables, prompts, tokens, order of samples.  Knows: texts, token ids.  Knows nothing of: models, methods, servers."""
