"""The service as an application meets it: through the openai client, against real engines."""
