"""Tables, prompts, tokens, and the order in which samples are trained on.

Knows: texts and token ids.  Knows nothing of: models, methods, servers.
"""
