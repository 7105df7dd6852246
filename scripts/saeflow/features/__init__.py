"""What each latent of an SAE stands for: bank, patterns, causal effects, decoder geometry, hypotheses, report.

The parts take arrays and plain functions, so any store and model will do:

bank = collect(encoded(sae, store), top=16, labels=labels)
effects = logit_effects(logits_from, sae.W_dec, x, bank.top, bank.mean_active, n_added=256, seed=0)

`analysis.analyze` does all of it for an image classifier.
"""
