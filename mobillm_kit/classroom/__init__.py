"""The classroom: one server for a class, and who is in it.

Knows: the server, students, codes, a database.  Knows nothing of: how a batch is trained, devices' data.
"""
