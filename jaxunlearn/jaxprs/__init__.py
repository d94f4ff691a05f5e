"""What a trace of a function says: its operations, axes, linear units and structure."""
