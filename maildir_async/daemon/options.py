"""The settings of ``serve``, made of the command line and the configuration file by the table of options."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from maildir_async.daemon.config import Config, ConfigError, Source, placed, read_config
from maildir_async.daemon.flags import BY_NAME, OPTIONS, Option, add_options, items_of
from maildir_async.daemon.settings import ListenerSettings, Settings
from maildir_async.daemon.sockets import parse_listening
from maildir_async.format.given import meant

__all__ = ["BY_NAME", "OPTIONS", "Option", "add_options", "settings_of"]


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what *options*, and the file that they name, come to.

    ValueError if they make no sense; `ConfigError` if it is the file that does not. OSError if that cannot be read. The
    system is asked for its name if none is said, which may ask the DNS. Needs aiosmtpd.
    """
    from maildir_async.smtp.hostname import own_name

    said = vars(options)
    path = said.get("config")
    config = read_config(path) if path is not None else Config()
    flags = Source({name: value for name, value in said.items() if name in BY_NAME})
    top = config.top.without("address")
    found = _values([flags, top])
    listeners = _listeners(said.get("address") or [], flags, top, config)
    common = {option.dest: found[option.name] for option in OPTIONS if not option.of_listener}
    common |= {"hostname": found["hostname"] or own_name(), "listeners": listeners}
    settings = Settings(**{field.name: common[field.name] for field in fields(Settings)})
    try:
        _check(settings)
    except ValueError as exc:
        raise (ValueError if path is None else ConfigError)(placed(path, str(exc))) from None
    return settings


def _values(sources: Sequence[Source]) -> dict[str, Any]:
    """Return the value of each option by its name: that of the first of *sources* which has one, or its default."""
    found: dict[str, Any] = {}
    for source in sources:
        for name, given in source.said.items():
            option = BY_NAME.get(name)
            if option is None or (option.only_flag and source.path is not None):
                known = [each.name for each in OPTIONS if not each.only_flag]
                raise source.mistake(name, f"there is no such option{meant(name, known)}")
            try:
                value = option.value_of(given)
            except ValueError as exc:
                raise source.mistake(name, exc) from None
            found.setdefault(name, value)
    return {option.name: found.get(option.name, option.default) for option in OPTIONS}


def _listeners(addresses: Sequence[str], flags: Source, top: Source, config: Config) -> tuple[ListenerSettings, ...]:
    """Return where mail comes in: at the command line's addresses if it has some, or else at the file's."""
    if addresses:
        return tuple(_listener(text, [flags, top], None) for text in addresses)
    found: list[ListenerSettings] = []
    for text in items_of(config.top.said.get("address", [])):
        if not isinstance(text, str):
            raise config.top.mistake("address", f"an address, or a list of some, is wanted, not {text!r}")
        found.append(_listener(text, [flags, top], config.top))
    if not config.listeners and not found:
        return (_listener(None, [flags, top], None),)
    for source in config.listeners:
        said = dict(source.said)
        address = said.pop("address", None)
        own = source.without("address")
        if strange := sorted(name for name in said if not (name in BY_NAME and BY_NAME[name].of_listener)):
            known = ["address", *(each.name for each in OPTIONS if each.of_listener)]
            raise source.mistake(strange[0], f"a listener has no such option{meant(strange[0], known)}")
        if not isinstance(address, str):
            raise source.mistake("address", f"an address is wanted, not {address!r}")
        found.append(_listener(address, [flags, own, top], source))
    return tuple(found)


def _listener(text: str | None, sources: Sequence[Source], source: Source | None) -> ListenerSettings:
    found = _values(sources)
    try:
        address = None if text is None else parse_listening(text)
    except ValueError as exc:
        raise exc if source is None else source.mistake("address", exc) from None
    own: dict[str, Any] = {option.dest: found[option.name] for option in OPTIONS if option.of_listener}
    own["lmtp"] = _speaks_lmtp(text, sources, source)
    del own["smtp"]
    return ListenerSettings(address=address, **own)


def _speaks_lmtp(text: str | None, sources: Sequence[Source], table: Source | None) -> bool:
    """Return whether it is LMTP, and not SMTP, in the first of *sources* that says one of the two.

    *table* is the part of the file that has the address *text*.
    """
    for source in sources:
        lmtp, smtp = source.said.get("lmtp") is True, source.said.get("smtp") is True
        if lmtp and smtp:
            raise source.mistake("smtp", "it goes without --lmtp")
        if lmtp or smtp:
            return lmtp
    missing = f"one of --lmtp and --smtp is wanted{f' for {text}' if text else ''}"
    if table is not None:
        raise table.mistake("address", missing)
    path = sources[-1].path
    raise ValueError(missing) if path is None else ConfigError(f"{path}: {missing}")


def _check(settings: Settings) -> None:
    """Raise ValueError for what does not go together."""
    if settings.users is not None and settings.layout is None:
        raise ValueError("--users goes with --layout")
    if settings.layout is None and settings.resolver is None and settings.map is None:
        raise ValueError("one of --layout, --map and --resolver is wanted")
    if settings.resolver is not None and (settings.map or settings.layout) is not None:
        raise ValueError("--resolver goes alone, and --map with --layout, or alone")
    if settings.group is not None and settings.user is None:
        raise ValueError("--group goes with --user")
    if settings.tls_key is not None and settings.tls_cert is None:
        raise ValueError("--tls-key goes with --tls-cert")
    for listener in settings.listeners:
        if (listener.require_tls or listener.implicit_tls) and settings.tls_cert is None:
            raise ValueError(f"--{'implicit' if listener.implicit_tls else 'require'}-tls goes with --tls-cert")
