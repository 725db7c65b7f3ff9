"""The HTTP port: each request becomes a call of a gRPC method and runs through its handler."""
