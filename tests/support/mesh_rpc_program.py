"""A process with one peer that serves `Echo`, until its standard input ends.

Its first line of input says who it is, in JSON; its first line of output is where it listens.
"""

import asyncio
import json
import sys

from mesh_rpc import Echo

from tinkex._clock import SystemClock
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.rpc.peers import Credentials, Peers
from tinkex.mesh.transport.iroh import IrohTransport
from tinkex.mesh.transport.tls import TlsTransport

TRANSPORTS = {"tls": TlsTransport, "iroh": IrohTransport}


def description(kind, credentials):
    """The line that starts such a process."""
    return json.dumps(
        {
            "transport": kind,
            "seed": credentials.key_pair.seed.hex(),
            "network": str(credentials.network),
            "certificate": credentials.certificate.hex(),
        }
    )


async def main():
    """Serve."""
    given = json.loads(sys.stdin.readline())
    key_pair = KeyPair(bytes.fromhex(given["seed"]))
    network = PeerId.parse(given["network"])
    credentials = Credentials(
        key_pair, network, frozenset({network}), bytes.fromhex(given["certificate"])
    )
    clock = SystemClock()
    peers = Peers(TRANSPORTS[given["transport"]](key_pair, clock=clock), credentials, clock=clock)
    peers.serve(Echo())
    await peers.start()
    sys.stdout.write(json.dumps(peers.contact.addresses) + "\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await peers.stop()


if __name__ == "__main__":
    asyncio.run(main())
