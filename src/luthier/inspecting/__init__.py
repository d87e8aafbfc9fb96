"""What is looked at before a run and beside it: the machine, the model, its gradients, the data."""
