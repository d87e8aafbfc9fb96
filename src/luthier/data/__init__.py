"""From files to the batches of a step: rows, examples, samples, micro-batches."""
