"""Data sets, requests to forget, the sets they make, and batches drawn from these."""
