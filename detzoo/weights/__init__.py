"""Foreign weights in: the same arrays under other names."""
