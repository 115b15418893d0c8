"""Who serves what, and where: Kademlia over the mesh's own links, with signed, expiring records.

keys      ids, distance                      ┐
records   what is announced, and its checks  │ sans-IO: time and randomness are arguments
routing   whom a node knows                  │
lookup    how it asks its way to a key       │
storage   what it holds for others           ┘
api       the messages
node      all of it, over `rpc`
"""
