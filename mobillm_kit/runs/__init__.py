"""Runs: one, many, each in its process; and the machine they run on.

Knows: every room below.  Knows nothing of: the command line.
"""
