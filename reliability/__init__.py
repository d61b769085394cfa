"""Breaks a deployment on purpose and counts what it cost: chaos, fuzz, soak and cost, with known answers."""
