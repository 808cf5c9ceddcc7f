"""The backbone, its batches, the way to a server.  Knows: models, messages.  Knows nothing of: how servers train."""
