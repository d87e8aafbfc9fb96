"""The report on the data."""
