"""Chains: the arithmetic. Arrays in, arrays out; a chain knows no model, no name and no data format."""
