"""What users call; `d2dmoe` exports it."""
