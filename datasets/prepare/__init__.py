"""One-off preparations of data sets."""
