"""The Open Inference Protocol: its requests become requests of vae.v1, and the responses go back.

It holds no logic of models: `latentd.rpc` does the work. README.md is the page for users.
"""
