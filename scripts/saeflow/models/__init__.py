"""Networks under study, and their training."""
