"""A model in training form: what it says of the positions that are trained."""
