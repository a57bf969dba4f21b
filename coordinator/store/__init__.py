"""What must survive: jobs, studies, priors, idempotency keys, counters. Never tensors, data sets or logs."""
