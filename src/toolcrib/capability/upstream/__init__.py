"""Calls to consumed APIs: credentials, time-outs, retries, circuit breaker, rate limit, cache and pagination.

Everything is compiled from the capability file once; a call parses nothing of it. The network is `core/http.py`.
"""

from toolcrib.capability.upstream.auth import Authenticator, compile_auth
from toolcrib.capability.upstream.client import OnExchange, Upstream
from toolcrib.capability.upstream.pages import Pagination, compile_pagination, fetch_all
from toolcrib.capability.upstream.policy import POLICY_KEYS, Policy, compile_policy
from toolcrib.capability.upstream.request import UpstreamRequest

__all__ = [
    "POLICY_KEYS",
    "Authenticator",
    "OnExchange",
    "Pagination",
    "Policy",
    "Upstream",
    "UpstreamRequest",
    "compile_auth",
    "compile_pagination",
    "compile_policy",
    "fetch_all",
]
