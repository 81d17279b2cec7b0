"""Data: prepared once by rule `dataset`, then read by every stage that trains or measures."""
