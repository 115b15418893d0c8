"""Append-only, signed, replicated logs: one author each, folded into views.

    entry  <-  chain, policy  <-  epoch  <-  tables  <-  own  <-  store  <-  view, replication

`entry`, `chain`, `policy`, `epoch`, `snapshot` and `admission` are sans-IO. A worker has one SQLite
file (`database`); what was lost or damaged comes back from peers (`recovery`, `replication`).
"""
