"""A small ordering service on SQLAlchemy that becomes CQRS in four steps, while it is running."""
