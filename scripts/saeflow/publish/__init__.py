"""What readers see of a study: tables, figures, report."""
