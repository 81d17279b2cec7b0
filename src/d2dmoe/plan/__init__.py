"""What exists, where it lies, and what reads it."""
