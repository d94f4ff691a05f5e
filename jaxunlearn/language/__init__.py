"""Language models: decoders, their checkpoints and tokenizers, likelihoods, and concept words."""
