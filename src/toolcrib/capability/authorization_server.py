"""Where an authorization server says what it can do: for tokens that we ask for, and for tokens that we judge."""

from urllib.parse import urlsplit


def metadata_urls(issuer: str) -> list[str]:
    """Where the metadata of an issuer may stand: inserted before its path (RFC 8414), then appended (OpenID)."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    oauth, openid = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
    urls = [origin + oauth + path, origin + openid + path, origin + path + openid, origin + path + oauth]
    return list(dict.fromkeys(urls))
