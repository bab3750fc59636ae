"""Small corpora in exactly the published formats, made from this package's own drawings."""
