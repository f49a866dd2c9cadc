"""The composition root: contexts, stores and services, wired and run."""
