"""A token says what it said when it was signed, or it is refused."""

import base64
import json

import pytest

from mesh_lab.errors import BadTokenError
from mesh_lab.security.accounts import LIMITS, Operator
from mesh_lab.security.tokens import Key, decode_token, encode_token


@pytest.mark.parametrize(("role", "letter"), [("operator", "O"), ("account", "A"), ("user", "U")])
def test_a_key_says_by_its_first_letter_what_it_is_for(role, letter):
    key = Key.new(role)
    assert (key.public[0], key.seed[:2]) == (letter, "S" + letter)
    assert key.seed not in repr(key)


def test_a_key_for_anything_else_is_refused():
    with pytest.raises(ValueError, match="a key for 'server'; expected one of operator, account, user"):
        Key.new("server")


def test_a_token_says_who_says_what_of_whom():
    signer, about = Key.new("account"), Key.new("user")
    claims = decode_token(
        encode_token(
            "user", {"subs": 5}, subject=about.public, signer=signer, name="till", lives_for=60, audience="SHOP"
        )
    )
    assert (claims["iss"], claims["sub"], claims["name"]) == (signer.public, about.public, "till")
    assert (claims["exp"], claims["aud"]) == (claims["iat"] + 60, "SHOP")
    assert claims["nats"] == {"subs": 5, "type": "user", "version": 2}


def changed(token: str, **changes: object) -> str:
    header, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    packed = base64.urlsafe_b64encode(json.dumps({**claims, **changes}, separators=(",", ":")).encode())
    return f"{header}.{packed.decode().rstrip('=')}.{signature}"


@pytest.mark.parametrize("changes", [{"name": "the boss"}, {"sub": "UABC"}, {"iss": Key.new("operator").public}])
def test_a_token_that_was_changed_is_refused(changes):
    token = Operator().account("alpha").token()
    assert changed(token) == token
    with pytest.raises(BadTokenError, match="the signature does not fit"):
        decode_token(changed(token, **changes))


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "e30.e30.e30", "!.!.!", "eyJhbGciOiJub25lIn0.e30."])
def test_what_is_no_token_is_refused(token):
    with pytest.raises(BadTokenError, match=r"is no token|a token with the header"):
        decode_token(token)


def test_a_token_without_a_signature_algorithm_is_refused():
    token = Operator().token().split(".")
    none = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').decode().rstrip("=")
    with pytest.raises(BadTokenError, match="a token with the header"):
        decode_token(f"{none}.{token[1]}.")


def test_an_account_is_unlimited_where_nothing_was_said():
    limits = decode_token(Operator().account("alpha", conn=2).token())["nats"]["limits"]
    assert limits == {**LIMITS, "conn": 2}
    assert 0 not in limits.values()


def test_a_limit_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="no limit is called connections; there are subs, data"):
        Operator().account("alpha", connections=2)


def test_a_user_is_vouched_for_by_the_account_alone():
    operator = Operator()
    account = operator.account("alpha")
    user = account.user("till", publish=["orders.>"], lives_for=60)
    claims = decode_token(user.credentials.splitlines()[1])
    assert (claims["iss"], claims["sub"]) == (account.public, user.public)
    assert claims["nats"]["pub"] == {"allow": ["orders.>"]}
    assert claims["nats"]["sub"] == {}
    assert 59 <= claims["exp"] - claims["iat"] <= 60
    assert "SEED" not in repr(user)


def test_a_user_who_may_publish_nothing_has_an_empty_list_and_not_none():
    claims = decode_token(Operator().account("alpha").user("ear", publish=[]).credentials.splitlines()[1])
    assert claims["nats"]["pub"] == {"allow": []}


def test_the_servers_are_told_of_the_operator_and_of_no_seed():
    operator = Operator()
    account = operator.account("LAB")
    block = operator.server_block(account, directory="C:\\lab")
    assert operator.token() in block
    assert 'dir: "C:\\\\lab"' in block
    for key in (operator.key, operator.system.key, account.key):
        assert key.seed not in block
