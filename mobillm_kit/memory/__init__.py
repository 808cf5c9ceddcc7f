"""Memory predicted from shapes, and measured in a fresh process; what would fit.

Knows: methods, sizes, processes.  Knows nothing of: runs.
"""
