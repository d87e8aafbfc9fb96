"""The demo: a small model learns to turn a plain request into luthier's YAML, and luthier's own parser judges it."""
