"""Running models, and keeping what passes through them in bounded memory."""
