"""The Bayesian side of BASE: flat parameter vectors, priors, posteriors, relaxations and divergences."""
