"""Particle recursions: propagate, weigh, resample. Arrays and pure functions only."""
