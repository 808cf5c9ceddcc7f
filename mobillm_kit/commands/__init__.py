"""What `mobillm` can be told to do: each command a description with its options as fields.

Knows: every room below.  Knows nothing that a function below it does not know better.
"""
