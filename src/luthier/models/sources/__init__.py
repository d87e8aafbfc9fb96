"""Where models come from: a folder, a GGUF file, a hub, a package of the package index, pickled weights."""
