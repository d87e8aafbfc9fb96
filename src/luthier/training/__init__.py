"""The spine: build everything from a configuration, run the steps, write what is left."""
