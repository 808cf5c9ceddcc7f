"""Jobs on more than one machine, by Ray.  Knows: jobs of runs, Ray.  Knows nothing of: how a method works, pictures."""
