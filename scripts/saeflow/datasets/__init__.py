"""Data that the networks under study see."""
