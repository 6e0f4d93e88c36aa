"""Fuzzing: every parser and splitter of the package, on whatever octets there can be.

``python -m tests.fuzz`` is the short form: a second for each target, without a fuzzer, then patterns. ``--full`` is the
long one: minutes for each, under atheris. ``python -m tests.fuzz TARGET`` runs one until something is found.

A target is a module here with a function ``target(data)``, which takes any octets and raises if what the code under
test makes of them is wrong, and with `PIECES`, which inputs are put together from. What is right it says by itself,
with a few plain lines. It looks for these, as far as they have a meaning for what it is about:

* No exception but those that are documented.
* What is written and read again is the same; what has one form has it after one step.
* The same in any chunking: whole, octet by octet, cut anywhere.
* Nothing is lost: octets out are octets in, but for what the documentation says is changed.
* What comes out is in its bounds: no slash in a part of a path, no line end in a header, no negative size.

Time is looked at too: of each piece repeated, four times as much may not take eight times as long (`patterns`).

`TARGETS` says which functions are under test by which target. `NO_PARSERS` has the modules that take texts apart, and
in which nothing can be wrong with them: ``tests/test_fuzz.py`` finds those that are in neither.
"""

from typing import Final

__all__ = ["NO_PARSERS", "TARGETS"]

#: Target → what it is about, and the functions under test: ``module:name``, with a class's method as ``Class.name``.
TARGETS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "addresses": (
        "addresses, domains, delimiters; the paths that a layout makes of them",
        (
            *("smtp.addresses:parse_address", "smtp.addresses:parse_key", "smtp.addresses:destination"),
            *("smtp.addresses:host_name", "smtp.addresses:divided", "smtp.addresses:detail_of"),
            *("smtp.addresses:unquoted", "smtp.addresses:check_delimiters", "smtp.layout:Layout.path_of"),
        ),
    ),
    "bdat": ("BDAT in a session", ("smtp.streaming:StreamingSMTP.smtp_BDAT", "smtp.wire:each_octet")),
    "config": (
        "the daemon's file, and the settings that come of it",
        ("daemon.config:read_config", "daemon.config:placed", "daemon.options:settings_of"),
    ),
    "content": (
        "prefix, mbox line, newlines, both sizes",
        (
            *("format.content:Content.feed", "format.content:Content.end", "format.content:check_prefix"),
            "format.content:wire_size_of",
        ),
    ),
    "data": ("DATA in a session", ("smtp.streaming:StreamingSMTP.smtp_DATA", "smtp.wire:each_chunk")),
    "dots": (
        "doubled dots, the longest line, the terminator",
        ("smtp.dot_stuffing:Unstuffer.feed", "smtp.dot_stuffing:LineLimit.admits", "smtp.dot_stuffing:begun"),
    ),
    "envelope": (
        "arguments of commands; replies and trace headers made of them",
        (
            *("smtp.paths:parse_path", "smtp.paths:parse_mailbox", "smtp.paths:parse_vrfy"),
            *("smtp.paths:parse_parameters", "smtp.paths:xtext_is_valid", "smtp.paths:is_recipient"),
            *("smtp.streaming:_announced_chunk", "smtp.replies:as_reply", "smtp.replies:encoded"),
            *("smtp.replies:combined", "smtp.replies:joined", "smtp.trace:trace_headers"),
            *("smtp.proxied:plain_host", "smtp.proxied:Networks"),
        ),
    ),
    "folders": (
        "folders' names, as told and in both encodings",
        (
            *("format.folders:parts_of", "format.folders:directory_of", "format.folders:folder_of"),
            "mail_import.places:folder_part",
        ),
    ),
    "frames": (
        "what passes between a process and its helper",
        (
            *("helper.protocol:Decoder.feed", "helper.protocol:encode", "helper.answers:error_from"),
            "helper.answers:delivered_from",
        ),
    ),
    "gzip": ("compressed files, whole, joined and damaged", ("mail_import.reading:MailFile.read",)),
    "header": (
        "Message-ID and junk header",
        (
            *("format.message_id:Head.observe", "format.message_id:message_id_of", "format.junk:JunkHeader"),
            *("format.junk:JunkHeader.can_tell", "format.junk:JunkHeader.marks"),
        ),
    ),
    "host": (
        "mountinfo, sockets of systemd, lock files, the watchdog",
        (
            *("disk.probing:_type_in", "daemon.sockets:passed", "disk.dotlock:_Watched._read_pid"),
            "daemon.notify:watchdog_s",
        ),
    ),
    "journals": (
        "damaged SQLite files of imports and of duplicates",
        (
            *("disk.imported:Imported.open", "disk.imported:Imported.find", "disk.imported:Imported.numbers"),
            *("disk.seen:Seen.find", "disk.seen:Seen.remember"),
        ),
    ),
    "keywords": (
        "`dovecot-keywords`, and keywords as asked for",
        (
            *("format.keywords:parse_keywords", "format.keywords:format_keywords", "format.keywords:check_keywords"),
            "mailbox.check_files:_broken",
        ),
    ),
    "maildirsize": (
        "`maildirsize`; limits and sizes as people write them",
        (
            *("format.quota:parse_held", "format.quota:parse_limits", "format.quota:format_held"),
            *("format.quota:limits_of", "format.quota:quota_of", "format.sizes:size_of"),
        ),
    ),
    "maps": (
        "files of addresses and of users, templates of layouts",
        (
            *("smtp.maps:MapFile.load", "smtp.maps:AddressMap", "smtp.tables:UserFile.load"),
            *("smtp.tables:lines", "smtp.layout:Layout"),
        ),
    ),
    "mbox": (
        "mboxes in each dialect; From lines; what readers write into a header",
        (
            *("mail_import.mbox:Mbox.parts", "mail_import.mbox:is_from_line", "mail_import.headers:from_line_date"),
            *("mail_import.headers:marks_of", "mail_import.headers:begin_digest"),
        ),
    ),
    "names": (
        "names of messages, whoever gave them",
        (
            *("format.read_names:info_of", "format.read_names:letters_of", "format.read_names:said_size"),
            *("format.read_names:said_sizes", "format.read_names:sizes_of", "format.read_names:with_sizes"),
            *("format.names:key_of", "format.names:number_of", "format.names:check_flags", "format.names:file_name"),
            *("format.names:UniqueNames", "disk.listing:arrival", "disk.maildirsize:_size_of"),
            *("disk.maildirsize:_is_trashed", "mailbox.index:_existing", "helper.recovery:_sizes_in"),
        ),
    ),
    "paths": (
        "MAIL, RCPT and VRFY in a session",
        (
            "smtp.envelope:EnvelopeSMTP.smtp_MAIL",
            "smtp.envelope:EnvelopeSMTP.smtp_RCPT",
            "smtp.envelope:EnvelopeSMTP.smtp_VRFY",
        ),
    ),
    "proxy": ("PROXY headers", ("smtp.proxied:parse_proxy",)),
    "source": (
        "directories that mail is imported from: Maildir, MH, files",
        ("mail_import.messages:Messages.each", "mail_import.messages:Messages.total", "mail_import.places:places"),
    ),
    "subscriptions": ("`subscriptions`", ("format.subscriptions:with_subscription",)),
    "values": (
        "values of options",
        (
            *("daemon.flags:Option.value_of", "daemon.values:count", "daemon.values:seconds", "daemon.values:mode"),
            *("daemon.values:network", "daemon.values:hostname", "daemon.values:ident"),
            *("daemon.values:metrics_address", "daemon.sockets:parse_address", "daemon.sockets:parse_listening"),
            *("daemon.privileges:identity_of", "daemon.resolver:NamedResolver"),
            *("command.parser:size", "command.parser:moment"),
        ),
    ),
    "xclient": ("XCLIENT and XFORWARD", ("smtp.proxied:parse_attributes",)),
}

#: Module → why what it takes apart needs no target of its own.
NO_PARSERS: Final[dict[str, str]] = {
    "command.answers": "lines of a text of its own",
    "command.main": "the version of Python",
    "command.manual": "the manual page, which it makes itself of the help",
    "command.outcomes": "an error's text, for people",
    "commit.batch": "a name of its own making",
    "daemon.metrics": "a reply, of which it wants the first three characters",
    "daemon.peers": "an address that the kernel says",
    "disk.as_root": "paths, a name at a time, each of which is opened before the next",
    "disk.directories": "a path of the caller's, into the directory and the name",
    "disk.identity": "what statx(2) has written",
    "disk.paths": "a path, at its slashes; `values` has it made absolute",
    "disk.posix": "the release of the kernel",
    "disk.subscriptions": "a folder's directory, at the dots that `folders` is about",
    "mail_import.program": "what the process that it works for has pickled",
    "mailbox.claims": "a hash of its own",
    "mailbox.examining": "names, by what `names` is about",
    "mailbox.inspection": "names, by what `names` is about",
    "mailbox.repairing": "names, by what `names` is about",
    "mailbox.upkeep": "names, by what `names` is about",
    "smtp.commands": "the first word of a line, which `paths` sends",
    "smtp.hostname": "the system's own name, at its dots",
    "smtp.looking": "a path that a layout has made",
    "smtp.site": "an address that `paths` has read, at its last @",
    "smtp.sorting": "a detail, at its dots and slashes: what comes of it `folders` is about",
    "testing.crash": "paths of a disk in memory",
}
