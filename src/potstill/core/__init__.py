"""The few words every room speaks: batches, signals, errors, optional imports, progress, fingerprints."""
