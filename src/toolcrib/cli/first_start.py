"""What the first start tells once: the administrator's password and the first keys."""

from rich.console import Console
from rich.panel import Panel

from toolcrib.cli.sign_in_file import save_cli_key
from toolcrib.installation import Ready
from toolcrib.settings import Settings

_console = Console(stderr=True)


def keep_cli_key(settings: Settings, ready: Ready, url: str | None) -> None:
    """Keep this host's own key in the sign-in file, if this process made the installation."""
    if ready.first_start is not None:
        save_cli_key(settings.data, url, ready.first_start.cli_key)


def print_first_start(ready: Ready) -> None:
    """Print what will never be shown again, if this process made the installation."""
    first = ready.first_start
    if first is None:
        return
    text = (
        f"E-mail    {ready.installation.admin_email}\nPassword  {first.admin_password}\nAPI key   {first.api_key}\n"
        f"Workspace {ready.installation.workspace_id}\n\nShown this once. `toolcrib key create` makes more keys."
    )
    _console.print(Panel(text, title="First start: keep these", expand=False, border_style="yellow"), soft_wrap=True)
