"""How a language model's unembedding represents concepts and their hierarchy, and what moving along it does."""
