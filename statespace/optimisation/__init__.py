"""Raising functions: searches that run as flat compiled loops."""
