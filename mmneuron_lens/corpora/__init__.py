"""Corpora: what a question about an image is, how it is asked, and where it is read from."""
