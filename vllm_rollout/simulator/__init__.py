"""A stand-in model server: vLLM's wire behaviour, with a dial for every fault."""
