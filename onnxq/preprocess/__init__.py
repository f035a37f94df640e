"""Rewrites that look at samples before anything is solved."""
