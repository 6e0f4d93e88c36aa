#!/bin/sh -eu
# Mail for DOMAIN on a new Debian with postfix and dovecot-imapd, as root, from this directory: sh new-site.sh DOMAIN
# Before it: python3 -m venv /opt/maildir-async, and there pip install 'maildir-async[smtp]'.
getent passwd vmail >/dev/null || useradd --system --home-dir /var/mail --shell /usr/sbin/nologin vmail
install -d -o vmail -g vmail -m 0700 "/var/mail/$1"
install -D -m 0644 maildir-async.toml /etc/maildir-async/maildir-async.toml
printf '%s\n' "postmaster@$1" >/etc/maildir-async/users
install -m 0644 maildir-async.service maildir-async.socket /etc/systemd/system/
sed "s/example\.org/$1/" postfix-main.cf >>/etc/postfix/main.cf
case $(dovecot --version) in 2.3*) mail=dovecot.conf ;; *) mail=dovecot-2.4.conf ;; esac
install -m 0644 "$mail" /etc/dovecot/conf.d/99-maildir-async.conf
/opt/maildir-async/bin/maildir-async serve --check-config --config /etc/maildir-async/maildir-async.toml
systemctl daemon-reload && systemctl enable --now maildir-async.socket maildir-async.service && systemctl restart postfix dovecot
