"""What single model families need, by name. A patch changes a loaded instance, never a class of another library."""
