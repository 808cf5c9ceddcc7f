"""How the things in ``data/`` are made; nothing here is in the wheel."""
