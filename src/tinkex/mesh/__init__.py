"""A peer-to-peer network that serves models: auth, gateway, processor, client, bootstrap workers.

    identity  <-  roles  <-  trust  <-  transport  <-  rpc  <-  api
              <-  {dht, feeds, blobs, processing}  <-  workers

Each layer imports what is left of it. `accounts`, `quota`, `purse`, `usage`, `limits`, `catalog`
and `balancer` are domain code: they know no transport and no RPC. Nothing here imports torch, but
`processing` where it runs our engine.
"""
