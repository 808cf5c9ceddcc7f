"""The pocket backbone: the grammar that writes its text, its pretraining, its task.

Knows: nothing itself.  Import ``grammar``, ``lexicon`` and ``pretrain`` by name.
"""
