"""The service with simulated workers, to plan capacity: the real dispatcher, rounds, outer step and job store.

Only what takes time is modelled: what workers compute, what the network carries, and what each step of the coordinator
costs. Simulated seconds pass, and the coordinator, one process, is busy for what it does; what arrives meanwhile waits.
"""
