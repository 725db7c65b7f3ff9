"""The contract in protos/, method by method: messages to arrays, a model's answer to messages."""
