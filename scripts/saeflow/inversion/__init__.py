"""Inverse embeddings: which features are worth asking about, what text drives them most, and what they mean."""
