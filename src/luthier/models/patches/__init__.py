"""What single model families, or kinds of machines, need, by name. A patch changes a loaded instance, or what a name means while one
is built; a class of another library stays as it is."""
