"""Conditionals: what a model says of its transition, its observation and its first state."""
