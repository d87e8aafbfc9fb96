"""From a name to a model that can be trained: fetched, checked, loaded, with adapters and new tokens."""
