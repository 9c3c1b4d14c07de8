"""What must hold of a request and of an answer, whoever made it."""
