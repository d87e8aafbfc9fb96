"""What is in the data, as plain values: for the terminal, for programs and for a page."""
