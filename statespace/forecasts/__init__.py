"""The law of observations to come."""
