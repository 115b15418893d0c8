"""A real gateway and a real auth worker whose logs are pruned while people use the mesh."""

from mesh_sim_checks import check_usage
from mesh_sim_users import User
from mesh_sim_world import World

from tinkex.mesh.feeds.policy import ACCOUNTS_PRIVATE, USAGE
from tinkex.mesh.usage import COUNTERSIGNED
from tinkex.testing.simulation import simulate


async def entries(node, feed, author):
    """How many entries of an author a worker has had, and how many of them were pruned."""
    held = await node.member.feeds.held(feed, author.peer_id)
    return sum(one.last + 1 for one in held), sum(one.base + 1 for one in held)


async def report(user):
    return await user.node.inside(user.mesh().usage())


async def ask_often(user, times):
    for _ in range(times):
        await user.node.inside(user.ask(user.mesh()))
        await user.world.clock.sleep(4.0)


async def pruned_everywhere(world, more_than):
    """Wait until the gateway has pruned so many entries of its usage, and the auth worker too."""
    (auth,), (gateway,) = world.auths, world.gateways
    for _ in range(60):
        own, copy = await entries(gateway, USAGE, gateway), await entries(auth, USAGE, gateway)
        if own == copy and own[1] > more_than:
            return own[1]
        await world.clock.sleep(1.0)
    raise AssertionError((own, copy))


async def live(folder):
    async with World(7, folder, gateways=1, processors=1, clients=1) as world:
        (auth,), (gateway,), (client,) = world.auths, world.gateways, world.clients
        user = User(world, "ann", client)
        await client.inside(user.sign_up(user.mesh()))
        await ask_often(user, 12)
        pruned = await pruned_everywhere(world, 8)
        assert (await entries(auth, ACCOUNTS_PRIVATE, auth))[1] > 0

        async def usage_is_whole():
            said = await report(user)
            check_usage(user, said)
            done = {one.request_id for one in user.asked if one.state == "done"}
            assert done <= {one.request_id for one in said.entries}
            return done, said

        await usage_is_whole()

        gateway.kill(power=True)
        await gateway.start()
        await ask_often(user, 2)
        await usage_is_whole()

        gateway.kill()
        for path in gateway.folder.glob("feeds.db*"):
            path.unlink()
        await gateway.start()
        assert (await entries(gateway, USAGE, gateway))[1] >= pruned
        await ask_often(user, 8)
        await pruned_everywhere(world, pruned)

        auth.kill(power=True)
        await auth.start()
        await ask_often(user, 2)
        done, said = await usage_is_whole()
        assert len(done) >= 18
        assert {one.request_id for one in said.entries if one.state == COUNTERSIGNED} == done
        world.reports.check()


def test_pruned_logs_answer_for_every_request_through_crashes_and_a_lost_folder(tmp_path):
    simulate(live(tmp_path), seed=7)
