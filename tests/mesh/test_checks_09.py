"""The exercises of notebook 09: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import ssl

import nats
import pytest
from exercise_cells import ExerciseCells, refused

CELLS = ExerciseCells("09_lock_the_doors", asyncio=asyncio, ssl=ssl, nats=nats)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


NEXT, ACK = "$JS.API.CONSUMER.MSG.NEXT.ORDERS.shipping", "$JS.ACK.ORDERS.shipping.>"


def permissions(*, publish=("orders.*.*.shipped", NEXT, ACK), subscribe=("_INBOX_shipping.>",)):
    listed = [", ".join(f'"{subject}"' for subject in subjects) for subjects in (publish, subscribe)]
    return f"publish: [ {listed[0]} ]\n subscribe: [ {listed[1]} ]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "None was returned"),
        ("publish: [", "the server did not understand it"),
        (permissions(subscribe=["_INBOX_billing.>"]), "may not listen to its inbox"),
        (permissions(publish=["orders.*.*.shipped", ACK]), "asked for an order and got none"),
        (permissions(publish=["orders.*.*.shipped", NEXT]), "may not acknowledge its order"),
        (permissions(publish=[NEXT, ACK]), "may not publish shipped events"),
        (permissions(publish=["orders.>", NEXT, ACK]), "may also publish placed orders"),
        (permissions(publish=["orders.*.*.shipped", "$JS.API.CONSUMER.>", ACK]), "may also take billing's orders"),
        (permissions(publish=["orders.*.*.shipped", "$JS.API.>", ACK]), "may also take billing's orders"),
        (permissions(publish=["orders.*.*.shipped", NEXT, "$JS.ACK.>"]), "may also acknowledge billing's orders"),
        (
            permissions(publish=["orders.*.*.shipped", NEXT, ACK, "$JS.API.STREAM.DELETE.ORDERS"]),
            "may also delete the stream",
        ),
        (permissions(subscribe=["_INBOX_shipping.>", "_INBOX.>"]), "may also watch answers to others"),
        (permissions(subscribe=["_INBOX_shipping.>", "orders.>"]), "may also watch paid events"),
        (permissions(subscribe=[">"]), "may also watch paid events"),
        ('publish: ">", subscribe: ">"', "may also watch paid events"),
    ],
)
async def test_permissions_that_are_too_small_or_too_large_are_refused(mesh, text, said):
    assert said in await refused("9.1", lambda: text)


def changing(*steps):
    async def change_key(reload, move, entry, old, new):
        texts = {"old": entry(old[1]), "new": entry(new[1]), "both": entry(old[1]) + "\n" + entry(new[1]), "none": ""}
        for step in steps:
            await (move(new[0]) if step == "move" else reload(texts[step]))

    return change_key


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["move"], "the server did not know it"),
        (["move", "new"], "the server did not know it"),
        (["new", "move"], "orders were lost"),
        (["both", "new", "move"], "orders were lost"),
        (["both", "move", "none"], "orders were lost"),
        (["both", "move"], "the old key still lets in"),
        (["both"], "the old key still lets in"),
        (["both", "move", "old"], "orders were lost"),
        (["old"], "the new key is refused in the end"),
    ],
    ids=" ".join,
)
async def test_a_key_changed_in_another_order_is_refused(mesh, steps, said):
    assert said in await refused("9.2", changing(*steps))


def entering(*, verify=True, hostname=True, signs=True, complains=True, trust=True, connected=True, client=True):
    """A way to connect that differs from the solution in one thing."""

    async def enter(urls, authority, seed, complain):
        context = ssl.create_default_context(cafile=authority if trust else None)
        context.check_hostname = hostname and verify
        context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
        options = {"nkeys_seed_str": seed} if signs else {}
        if complains:
            options["error_cb"] = complain
        found = await nats.connect(urls, tls=context, allow_reconnect=False, **options)
        if not connected:
            await found.close()
        return found if client else None

    return enter


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (entering(verify=False), "connected to a server that another authority certified"),
        (entering(hostname=False), "whoever has a certificate of that authority could pose as the server"),
        (entering(complains=False), "complain did not hear of it"),
        (entering(connected=False), "a client that is not connected was returned"),
        (entering(client=False), "None was returned"),
    ],
    ids=["no check of the server", "any name", "deaf", "closed", "no client"],
)
async def test_a_connection_that_is_not_safe_is_refused(mesh, answer, said):
    assert said in await refused("9.3", answer)


async def test_what_an_answer_raises_is_shown(mesh):
    assert "Authorization Violation" in await refused("9.3", entering(signs=False))
    assert "CERTIFICATE_VERIFY_FAILED" in await refused("9.3", entering(trust=False))
