"""The search space as plain values: primitives, cell topology, genotypes. No torch."""
