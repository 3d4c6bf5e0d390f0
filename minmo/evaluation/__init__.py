"""Evaluation: what mini hears and how well it answers, beside the systems it is compared with."""
