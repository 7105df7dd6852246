"""Concept injection: give a trained network a class that it never saw, from another network that knows it."""
