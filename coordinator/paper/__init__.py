"""The paper's experiments, one runner each: what is published, what a run needs, how it is run, and what came out."""
