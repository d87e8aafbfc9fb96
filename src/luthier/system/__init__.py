"""The machine, its cores, paths and memory; files and folders that are whole or absent; JSON without surprises; counts in words."""
