"""Search for the inputs that drive a feature most, for many features and restarts at once."""
