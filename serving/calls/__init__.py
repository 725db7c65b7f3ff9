"""A call: the coroutine that answers it, who asks and until when, and what it costs."""
