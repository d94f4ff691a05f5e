"""What forgetting is judged by."""
