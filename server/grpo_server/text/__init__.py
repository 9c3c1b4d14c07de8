"""Between text and ids: what a request in text becomes, on a thread of its own, and how ids are spelled in an answer."""
