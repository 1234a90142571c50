"""Measuring: what the machine allows, what Deepwell reaches of it, and what other engines reach beside it."""
