"""The methods of the contract in protos/: messages to arrays, the model's results to messages."""
