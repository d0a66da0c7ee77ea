"""Downstream tasks: models that are fine-tuned on labels."""
