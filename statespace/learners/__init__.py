"""Learners: how parameters are found."""
