"""How a row is read: one file a format."""
