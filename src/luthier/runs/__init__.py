"""The folder of a run: who may write it, what it began with, its record, and the list of runs."""
