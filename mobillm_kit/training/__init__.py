"""What training takes: an optimizer, and the ledger of the memory that it needs.

Knows: parameters, gradients, moments, what autograd keeps.  Knows nothing of: models, methods, servers.
"""
