"""Image sources, their node-local cache, and the learning tasks drawn from them."""
