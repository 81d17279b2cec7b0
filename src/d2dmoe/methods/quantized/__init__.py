"""Dense models with quantised weights."""
