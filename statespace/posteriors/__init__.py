"""What inference returns: the law of the states given the data."""
