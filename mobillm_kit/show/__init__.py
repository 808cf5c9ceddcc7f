"""What is shown of runs: tables, charts, panels, one page.

Knows: records and predictions.  Knows nothing of: how a run is made.
"""
