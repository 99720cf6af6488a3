"""The exercises of notebook 10: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import ssl

import nats
import pytest
from exercise_cells import ExerciseCells, accepted, refused

from mesh_lab.security import Key

CELLS = ExerciseCells("10_lock_the_doors", asyncio=asyncio, ssl=ssl, nats=nats)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


NEXT, ACK = "$JS.API.CONSUMER.MSG.NEXT.ORDERS.shipping", "$JS.ACK.ORDERS.shipping.>"


def permissions(*, publish=("orders.*.*.shipped", NEXT, ACK), subscribe=("_INBOX_shipping.>",)):
    listed = [", ".join(f'"{subject}"' for subject in subjects) for subjects in (publish, subscribe)]
    return f"publish: [ {listed[0]} ]\n subscribe: [ {listed[1]} ]"


def also(*publish):
    return permissions(publish=["orders.*.*.shipped", NEXT, ACK, *publish])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "None was returned"),
        ("publish: [", "the server did not understand it"),
        (permissions(subscribe=["_INBOX_billing.>"]), "may not listen to its inbox"),
        (permissions(subscribe=["_INBOX_shipping.*"]), "and may not hear that it is stored"),
        (permissions(publish=["orders.*.*.shipped", ACK]), "asked for an order and got none"),
        (permissions(publish=["orders.*.*.shipped", NEXT]), "may not acknowledge its order"),
        (
            permissions(publish=["orders.*.*.shipped", NEXT, "$JS.ACK.ORDERS.shipping.1.>"]),
            "may not acknowledge an order that came a second time",
        ),
        (permissions(publish=[NEXT, ACK]), "may not publish shipped events"),
        (
            permissions(publish=["orders.eu.*.shipped", NEXT, ACK]),
            "publish shipped events: orders.us.000010.shipped",
        ),
        (permissions(publish=["orders.>", NEXT, ACK]), "may also publish placed orders"),
        (permissions(publish=["*.*.*.shipped", NEXT, ACK]), "may also publish beside the orders"),
        (permissions(publish=["orders.*.*.shipped.>", "orders.*.*.shipped", NEXT, ACK]), "events below shipped ones"),
        (permissions(publish=["orders.*.*.shipped", "$JS.API.CONSUMER.>", ACK]), "may also take billing's orders"),
        (permissions(publish=["orders.*.*.shipped", "$JS.API.>", ACK]), "may also take billing's orders"),
        (
            permissions(publish=["orders.*.*.shipped", "$JS.API.CONSUMER.MSG.NEXT.*.shipping", ACK]),
            "may also take from another stream",
        ),
        (permissions(publish=["orders.*.*.shipped", NEXT, "$JS.ACK.>"]), "may also acknowledge billing's orders"),
        (permissions(publish=["orders.*.*.shipped", NEXT, "$JS.ACK.*.shipping.>"]), "acknowledge in another stream"),
        (also("$JS.API.CONSUMER.CREATE.ORDERS.>"), "may also create a consumer"),
        (also("$JS.API.CONSUMER.DURABLE.CREATE.>"), "may also create a consumer"),
        (also("$JS.API.CONSUMER.CREATE.ORDERS.shipping.>"), "may also change its consumer"),
        (also("$JS.API.CONSUMER.INFO.ORDERS.shipping"), "may also ask about its consumer"),
        (also("$JS.API.STREAM.DELETE.ORDERS"), "may also delete the stream"),
        (also("$JS.API.DIRECT.GET.ORDERS.>"), "may also read orders past its consumer"),
        (also("_INBOX_billing.>"), "may also answer for others"),
        (permissions(subscribe=["_INBOX_shipping.>", "_INBOX.>"]), "may also watch answers to others"),
        (permissions(subscribe=["_INBOX_shipping.>", "orders.*.*.shipped"]), "may also watch shipped events"),
        (permissions(subscribe=[">"]), "may also watch paid events"),
        ('publish: ">", subscribe: ">"', "may also watch paid events"),
        ('publish: { deny: "$JS.API.STREAM.>" }, subscribe: "_INBOX_shipping.>"', "may also publish placed orders"),
    ],
)
async def test_permissions_that_are_too_small_or_too_large_are_refused(mesh, own_meshes_kept, text, said):
    assert said in await refused("10.1", lambda: text)


@pytest.mark.parametrize(
    "text",
    [
        f'publish: {{ allow: ["{NEXT}", "$JS.ACK.ORDERS.shipping.*.*.*.*.*", "orders.*.*.shipped"] }}\n'
        'subscribe = { allow: ["_INBOX_shipping.>"] }',
        f'publish: {{ allow: ["orders.*.*.*", "{NEXT}", "{ACK}"], deny: ["orders.*.*.placed", "orders.*.*.paid"] }}\n'
        'subscribe: ["_INBOX_shipping.*", "_INBOX_shipping.*.*"]',
    ],
    ids=["allow", "deny"],
)
async def test_permissions_written_otherwise_are_accepted(mesh, own_meshes_kept, text):
    await accepted("10.1", lambda: text)


def changing(*steps):
    async def change_key(reload, move, entry, old, new):
        texts = {"old": entry(old[1]), "new": entry(new[1]), "both": entry(old[1]) + "\n" + entry(new[1]), "none": ""}
        texts["new and one more"] = f"{entry(new[1])}\n{{ user: anybody, password: anything }}"
        for step in steps:
            if step.startswith("move"):
                await move({"move": new[0], "move back": old[0], "move away": STRANGER.seed}[step])
            else:
                await reload(texts[step])

    return change_key


STRANGER = Key.new("user")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["move"], "the shop moved to the new key, and the server did not know it; expected the new key first"),
        (["new", "move"], "users without its old key, which the shop used, and orders were lost"),
        (["both", "new", "move"], "users without its old key, which the shop used, and orders were lost"),
        (["both", "move", "none"], "users without the new key, which the shop used, and orders were lost"),
        (["both", "move"], "the old key still lets in"),
        (["both"], "the old key still lets in"),
        (["both", "move", "old"], "users without the new key, which the shop used, and orders were lost"),
        (["both", "move", "move back", "new"], "users without its old key, which the shop used"),
        (["both", "move away", "new"], "the shop moved to a seed of its own, and the server did not know it"),
        (["both", "move", "new and one more"], "the servers know more users than entry(new[1])"),
        (["old"], "the new key is refused in the end"),
        ([], "the new key is refused in the end"),
    ],
    ids=" ".join,
)
async def test_a_key_changed_in_another_order_is_refused(mesh, own_meshes_kept, steps, said):
    assert said in await refused("10.2", changing(*steps))


async def begins_to_move(reload, move, entry, old, new):
    await reload("\n".join(entry(public) for _, public in (old, new)))
    moving = asyncio.create_task(move(new[0]))
    try:
        await reload(entry(new[1]))
    finally:  # or a client that is just being connected would outlive its loop
        await asyncio.wait({moving})


async def test_a_move_that_is_not_waited_for_is_refused_also_when_it_is_quick(mesh, own_meshes_kept):
    assert "given other users while the shop was still moving" in await refused("10.2", begins_to_move)


async def new_key_in_front(reload, move, entry, old, new):
    await reload(f"{entry(new[1])}\n\n{entry(old[1])}\n")
    await move(new[0])
    await reload(f"\n{entry(new[1])}\n")


@pytest.mark.parametrize("answer", [new_key_in_front, changing("old", "both", "both", "move", "move", "new", "new")])
async def test_a_key_changed_in_more_steps_is_accepted(mesh, own_meshes_kept, answer):
    await accepted("10.2", answer)


def entering(*, change=lambda context: None, complains=True, seed_of=lambda seed: seed, done=None, **more):
    """A way to connect that differs from the solution in one thing."""

    async def enter(urls, authority, seed, complain):
        context = ssl.create_default_context(cafile=authority)
        change(context)
        options = {"nkeys_seed_str": seed_of(seed), **more}
        if complains:
            options["error_cb"] = complain if complains is True else complains(complain)
        client = nats.NATS()
        try:
            await client.connect(urls, tls=context, allow_reconnect=False, **options)
        except asyncio.CancelledError:  # the check cuts it off in the middle: nobody else has this client
            await client.close()
            raise
        return await done(client, urls, options) if done else client

    return enter


def any_server(context):
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE


def any_name(context):
    context.check_hostname = False


def only_the_first(complain):
    heard = []

    async def pass_on(error):
        if not heard:
            heard.append(error)
            await complain(error)

    return pass_on


def only_publishes(complain):
    async def pass_on(error):
        if "publish to" in str(error):
            await complain(error)

    return pass_on


async def closed(client, urls, options):
    await client.close()
    return client


async def none(client, urls, options):
    return None


async def one_more(client, urls, options):
    entering.kept = client
    return await nats.connect(urls, tls=client.ssl_context, **options)


async def looks_afterwards(urls, authority, seed, complain):
    client = await entering(change=any_server)(urls, authority, seed, complain)
    reader, writer = await asyncio.open_connection(*urls[0].removeprefix("nats://").split(":"))
    try:
        await reader.readline()
        await writer.start_tls(ssl.create_default_context(cafile=authority), server_hostname="127.0.0.1")
    except BaseException:  # also where it is cut off in the middle: nobody else has this client
        await client.close()
        raise
    finally:
        writer.close()
    return client


async def tries_without(urls, authority, seed, complain):
    try:
        return await entering()(urls, authority, seed, complain)
    except ssl.SSLError:
        return await entering(change=any_server)(urls, authority, seed, complain)


async def trusts_others(urls, authority, seed, complain):
    context = ssl.create_default_context()
    return await nats.connect(urls, tls=context, nkeys_seed_str=seed, error_cb=complain)


async def trusts_others_in_silence(urls, authority, seed, complain):
    async def ignore(error): ...

    return await nats.connect(urls, tls=ssl.create_default_context(), nkeys_seed_str=seed, error_cb=ignore)


async def takes_the_seed_for_a_path(urls, authority, seed, complain):
    context = ssl.create_default_context(cafile=authority)
    return await nats.connect(urls, tls=context, nkeys_seed=seed, error_cb=complain, allow_reconnect=False)


UNCERTIFIED = "did not connect to a server that the authority certified"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (entering(change=any_server), "connected to a server that another authority certified"),
        (looks_afterwards, "connected to a server that another authority certified"),
        (tries_without, "connected to a server that another authority certified"),
        (entering(change=any_name), "whoever has a certificate of that authority could pose as the server"),
        (entering(tls_hostname="127.0.0.1"), "whoever has a certificate of that authority could pose as the server"),
        (entering(complains=False), "refused a publish, and complain did not hear of it"),
        (entering(complains=only_the_first), "refused a subscribe, and complain did not hear of it"),
        (entering(complains=only_publishes), "refused a subscribe, and complain did not hear of it"),
        (entering(done=closed), "a client that is not connected was returned"),
        (entering(done=none), "None was returned; expected a connected client"),
        (entering(done=one_more), "it left a second connection open"),
        (entering(seed_of=lambda seed: STRANGER.seed), "Authorization Violation"),
        (entering(seed_of=lambda seed: None), "Authorization Violation"),
        (trusts_others, f"in 3 s it {UNCERTIFIED}, and complain heard: [SSL: CERTIFICATE_VERIFY_FAILED]"),
        (trusts_others_in_silence, f"{UNCERTIFIED}; expected a connected client, which trusts the certificate"),
    ],
    ids=[
        *("no check of the server", "looks afterwards", "tries without", "any name", "one name for all", "deaf"),
        *("hears one", "hears publishes", "closed", "no client", "two", "another seed", "no seed", "trusts others"),
        "trusts others in silence",
    ],
)
async def test_a_connection_that_is_not_safe_is_refused(mesh, answer, said):
    verdict = await refused("10.3", answer)
    assert said in verdict
    if answer is not entering and hasattr(entering, "kept"):
        await entering.kept.close()
        del entering.kept


async def test_what_an_answer_raises_is_shown_without_the_seed(mesh):
    wrong = entering(change=lambda context: context.load_verify_locations("/nowhere"))
    assert "it raised FileNotFoundError" in await refused("10.3", wrong)
    verdict = await refused("10.3", takes_the_seed_for_a_path)
    assert "it raised FileNotFoundError: [Errno 2] No such file or directory: 'SU…'" in verdict


def with_a_context_of_its_own(context):
    context.minimum_version = ssl.TLSVersion.TLSv1_3


async def of_the_protocol(urls, authority, seed, complain):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=authority)
    client = nats.NATS()
    await client.connect(servers=urls, tls=context, nkeys_seed_str=seed, error_cb=complain, max_reconnect_attempts=1)
    return client


@pytest.mark.parametrize("answer", [entering(change=with_a_context_of_its_own), of_the_protocol])
async def test_a_connection_that_is_safe_in_another_way_is_accepted(mesh, answer):
    await accepted("10.3", answer)
