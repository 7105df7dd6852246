"""What a feature means, in a sentence with its evidence, and how well that sentence tells where the feature fires."""
