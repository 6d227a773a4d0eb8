"""The nouns: frozen data that every other package speaks of; no I/O."""
