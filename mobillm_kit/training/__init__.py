"""An optimizer, the ledger of memory.  Knows: parameters, gradients.  Knows nothing of: models, methods, servers."""
