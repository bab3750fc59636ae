"""The small trained models that come with the package, their cards, and the corpus they were trained on."""
