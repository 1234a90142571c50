"""Guessing the next tokens: where guesses come from, and whether they pay."""
