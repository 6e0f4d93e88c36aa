"""A message until it is whole: producers, sources, and the append task that takes from them."""
