"""What overlaps what, and who is paired with whom."""
