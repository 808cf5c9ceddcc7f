"""One method under many settings.  Knows: runs and what is shown of them.  Knows nothing of: the command line."""
