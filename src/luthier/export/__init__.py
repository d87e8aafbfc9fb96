"""What a result is written as: one file a form."""
