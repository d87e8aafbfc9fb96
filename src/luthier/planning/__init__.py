"""Memory before the run."""
