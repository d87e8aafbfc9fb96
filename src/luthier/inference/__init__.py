"""A model in use: opened, asked, scored, compared, exported."""
