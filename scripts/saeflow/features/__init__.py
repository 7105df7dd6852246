"""What each latent of an SAE stands for: bank, patterns, causal effects, decoder geometry, hypotheses, report."""
