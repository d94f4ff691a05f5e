"""Functions read off their traces: operations, axes, linear units and structure."""
