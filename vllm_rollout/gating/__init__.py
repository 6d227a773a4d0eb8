"""How gates become pytest items and pytest items become evidence (used by `plugin.py`)."""
