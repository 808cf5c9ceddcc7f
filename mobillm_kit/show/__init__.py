"""What is shown of runs: tables, charts, panels, a page.  Knows: records.  Knows nothing of: how a run is made."""
