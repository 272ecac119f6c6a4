"""Getting a server's files: one fetcher for each kind of package, and one for servers elsewhere."""

from __future__ import annotations

from toolscore.discovery.install.fetch.fetcher import Fetched, Fetcher
from toolscore.discovery.install.fetch.npm import NpmFetcher
from toolscore.discovery.install.fetch.oci import ContainerEngine, OciFetcher, remove_image
from toolscore.discovery.install.fetch.pypi import PypiFetcher
from toolscore.discovery.install.fetch.remote import RemoteFetcher
from toolscore.discovery.install.policy import InstallRules, Kind
from toolscore.upstreams.http_client import HttpClient

__all__ = ["ContainerEngine", "Fetched", "Fetcher", "fetcher_of", "remove_image"]


def fetcher_of(kind: Kind, rules: InstallRules, http: HttpClient, http_public: HttpClient) -> Fetcher:
    """Choose the fetcher of a kind of package.

    Args:
        http, http_public: for servers elsewhere; the second connects to public addresses only.
    """
    if kind == "pypi":
        return PypiFetcher(rules)
    if kind == "npm":
        return NpmFetcher(rules)
    if kind == "oci":
        return OciFetcher(rules)
    return RemoteFetcher(rules, http if rules.private_addresses else http_public)
