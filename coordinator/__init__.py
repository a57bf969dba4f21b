"""What drives a study: rounds, the outer step, executors, the coordinator actor, the command line."""
