"""All samples of a run: encoded once, counted in the ledger, and kept on disk by what they say."""
