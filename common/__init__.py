"""What both sides of the Ray boundary share: configuration, search space, networks, posterior, messages, artifacts."""
