"""Breaks a deployment on purpose and counts what it cost: chaos, fuzz and soak runs with known answers."""
