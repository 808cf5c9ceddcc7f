"""Runs, each in its process, and the machine.  Knows: every room below.  Knows nothing of: the command line."""
