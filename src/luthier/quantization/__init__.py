"""How the frozen weights are held: one file a kind."""
