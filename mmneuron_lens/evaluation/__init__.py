"""Evaluation: answers to accuracies and intervals, and the claims that artifacts decide."""
