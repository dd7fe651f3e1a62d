"""The server's rows and use cases. Nothing here knows of an HTTP request."""
