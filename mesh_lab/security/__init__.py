"""Authentication, authorization and encryption: certificates, keys, accounts and tokens."""

from mesh_lab.security.accounts import Account, Operator, User, announce
from mesh_lab.security.auth_callout import Grant, serve_logins
from mesh_lab.security.certificates import Authority
from mesh_lab.security.roles import ROLES, ROOM, Keyring, Role, edge, user_of
from mesh_lab.security.tokens import CurveKey, Key, credentials, decode_token, encode_token
