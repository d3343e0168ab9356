"""Text encoders: sentences in, one vector each out."""
