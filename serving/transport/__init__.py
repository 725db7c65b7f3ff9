"""How calls come in and answers go out: gRPC, TLS, tokens, refusals, statuses, traces.

Knows the methods by name only; what they do is `latentd.rpc`.
"""
