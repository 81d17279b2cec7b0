"""A job of the workflow: its log, device, threads, progress and saved state."""
