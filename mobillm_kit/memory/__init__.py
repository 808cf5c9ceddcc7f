"""Memory predicted and measured.  Knows: methods, sizes, processes.  Knows nothing of: runs."""
