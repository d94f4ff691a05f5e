"""Training: optimizers, augmentation, and what gradient methods share."""
