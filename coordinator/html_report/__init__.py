"""A run, a demo, an adaptation or a job as one HTML page that needs nothing but a browser: no network, no scripts."""
