"""The server as a process: started, drained, several side by side, and how large to make them."""
