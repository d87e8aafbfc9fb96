"""Before the run: memory, and how documents lie in a forward pass."""
