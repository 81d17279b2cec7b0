"""Files that are whole or not there, and are named when damaged."""
