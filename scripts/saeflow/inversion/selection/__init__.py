"""Which features of a dictionary are worth asking about: how they fire, how they cluster, which stand for the rest."""
