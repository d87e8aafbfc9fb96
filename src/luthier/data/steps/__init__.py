"""Which samples a step covers, and how they are laid out over processes and forward passes."""
