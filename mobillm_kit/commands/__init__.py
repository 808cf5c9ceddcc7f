"""What `mobillm` can be told to do.  Knows: every room below.  Knows nothing of: what a function below knows better."""
