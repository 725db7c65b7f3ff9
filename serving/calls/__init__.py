"""A call: its coroutine, its context, its statistics, and the things that it uses."""
