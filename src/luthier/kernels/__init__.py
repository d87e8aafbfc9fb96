"""Attention for flat batches and faster paths, each beside the plain torch twin that defines it."""
