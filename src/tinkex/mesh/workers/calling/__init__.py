"""How a client worker calls the mesh.

gateways      whom to ask, and when to ask another
completion    a completion on its way
completer     what OpenAI's API needs
http_app      that API over HTTP
receipt_book  the receipts on disk
"""
