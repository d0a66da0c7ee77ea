"""Batched augmentation on the device of the batch: parameters are drawn first, then applied."""
