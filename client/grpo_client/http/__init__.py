"""How a request gets to a server and an answer back: what is sent, to which server, when it is tried again."""
