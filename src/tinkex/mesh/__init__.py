"""A peer-to-peer network that serves models: auth, gateway, processor, client, bootstrap workers.

    identity  <-  trust  <-  transport  <-  rpc  <-  api  <-  {dht, feeds, blobs}  <-  workers

Each layer imports what is left of it. `accounts`, `quota` and `balancer` are domain code: they know
no transport and no RPC. Nothing here imports torch, but the processor when it runs our engine.
"""
