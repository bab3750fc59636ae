"""The drawn corpus: five domains of small images with questions, made from a seed."""
