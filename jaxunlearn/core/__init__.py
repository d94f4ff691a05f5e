"""What everything else stands on: errors, types, trees, keys, registries, nearest neighbours."""
